"""Durable writes: the order of fsync and rename (H48), a failure at each step, and a kill at each step (H40)."""

from __future__ import annotations

import errno
import os
import re
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from ramet.errors import CorruptError, FormatVersionError, HostError
from ramet.store import atomic
from tests.unit.children import own_descriptors, run_in_child
from tests.unit.steps import Steps, write_in_pieces

OLD, NEW = b"old content", b"new content, and longer" * 100


def without_random_digits(steps: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(verb, re.sub(r"\.[0-9a-f]{8}\b", ".RANDOM", what)) for verb, what in steps]


def names_in(directory: Path) -> set[str]:
    return {entry.name for entry in directory.iterdir()}


def steps_of(operation: Callable[[], object]) -> list[tuple[str, str]]:
    with Steps().recorded() as seen:
        operation()
    return without_random_digits(seen)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    directory = tmp_path / "place"
    directory.mkdir()
    return directory


# -- write_atomic -------------------------------------------------------------------------------------------------


def test_write_is_fsynced_before_the_rename_and_its_directory_after(place: Path) -> None:
    assert steps_of(lambda: atomic.write_atomic(place / "f", NEW)) == [
        ("fsync", ".f.RANDOM"),
        ("rename", ".f.RANDOM -> f"),
        ("fsync", "place"),
    ]
    assert (place / "f").read_bytes() == NEW


def test_a_write_that_need_not_be_durable_is_whole_all_the_same(place: Path) -> None:
    """Its rename may be lost, never its bytes alone (tests/vm/test_power_cut.py)."""
    assert steps_of(lambda: atomic.write_atomic(place / "f", NEW, durable=False)) == [
        ("fsync", ".f.RANDOM"),
        ("rename", ".f.RANDOM -> f"),
    ]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("step", range(3))
def test_a_write_that_fails_at_any_step_leaves_no_trace(place: Path, step: int, error: BaseException) -> None:
    path = place / "f"
    path.write_bytes(OLD)
    before = own_descriptors()
    with Steps(fail_at=step, error=error).recorded(), pytest.raises(type(error)):
        atomic.write_atomic(path, NEW)
    assert names_in(place) == {"f"}
    assert path.read_bytes() == (OLD if step < 2 else NEW), "only the last fsync comes after the fact"
    assert own_descriptors() == before


@pytest.mark.parametrize("step", range(3))
def test_a_write_that_is_killed_at_any_step_is_whole_or_not_there(place: Path, step: int) -> None:
    path = place / "f"
    path.write_bytes(OLD)

    def killed() -> None:
        with Steps(kill_at=step).recorded():
            atomic.write_atomic(path, NEW)

    assert run_in_child(killed) == -9
    assert path.read_bytes() == (OLD if step < 2 else NEW)
    assert all(name == "f" or name.startswith(".f.") for name in names_in(place))


def test_a_full_disk_leaves_the_old_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = place / "f"
    path.write_bytes(OLD)

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        atomic.write_atomic(path, NEW)
    assert path.read_bytes() == OLD
    assert names_in(place) == {"f"}


def test_short_writes_are_completed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """H34."""
    monkeypatch.setattr(os, "write", write_in_pieces(7))
    atomic.write_atomic(place / "f", NEW)
    assert (place / "f").read_bytes() == NEW


def test_a_symbolic_link_is_replaced_and_not_followed(place: Path) -> None:
    target = place / "target"
    target.write_bytes(OLD)
    (place / "f").symlink_to(target)
    atomic.write_atomic(place / "f", NEW, mode=0o640)
    assert target.read_bytes() == OLD
    assert not (place / "f").is_symlink()
    assert stat.S_IMODE((place / "f").stat().st_mode) == 0o640 & ~_umask()


# -- create_exclusive ---------------------------------------------------------------------------------------------


@pytest.fixture(params=["O_TMPFILE", "a temporary name"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to make a file that has no name yet: not every file system has O_TMPFILE (NFS, 9p)."""
    real = os.open

    def refuse(path: str, flags: int, *arguments: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return real(path, flags, *arguments)

    if request.param != "O_TMPFILE":
        monkeypatch.setattr(os, "open", refuse)
    return str(request.param)


def test_creation_is_fsynced_before_the_link_and_its_directory_after(place: Path, way: str) -> None:
    steps = steps_of(lambda: atomic.create_exclusive(place / "f", NEW))
    assert [verb for verb, _ in steps] == ["fsync", "link", "fsync"]
    assert steps[1][1].endswith(" -> f")
    assert steps[2] == ("fsync", "place")
    assert steps[0][1].startswith("#" if way == "O_TMPFILE" else ".f.")
    assert names_in(place) == {"f"}
    assert (place / "f").read_bytes() == NEW
    assert (place / "f").stat().st_nlink == 1
    assert (place / "f").stat().st_mode & 0o777 == 0o600


def test_only_one_creation_wins(place: Path, way: str) -> None:
    atomic.create_exclusive(place / "f", OLD)
    with pytest.raises(FileExistsError):
        atomic.create_exclusive(place / "f", NEW)
    assert (place / "f").read_bytes() == OLD
    assert names_in(place) == {"f"}, way


@pytest.mark.parametrize("step", range(3))
def test_a_creation_that_fails_at_any_step_has_not_happened(place: Path, step: int, way: str) -> None:
    """Also where the link was made and could not be made durable: the caller was told that the name is not his."""
    before = own_descriptors()
    with Steps(fail_at=step).recorded(), pytest.raises(OSError, match="Input/output"):
        atomic.create_exclusive(place / "f", NEW)
    assert names_in(place) == set(), way
    assert own_descriptors() == before


@pytest.mark.parametrize("step", range(3))
def test_a_creation_that_is_killed_at_any_step_leaves_nothing_else(place: Path, step: int) -> None:
    def killed() -> None:
        with Steps(kill_at=step).recorded():
            atomic.create_exclusive(place / "f", NEW)

    assert run_in_child(killed) == -9
    assert names_in(place) == ({"f"} if step == 2 else set())


# -- replacing ----------------------------------------------------------------------------------------------------


def replace(path: Path, before_the_end: Callable[[], object] = lambda: None) -> None:
    with atomic.replacing(path) as fd:
        os.write(fd, NEW)
        before_the_end()


def test_what_replaces_a_file_has_its_name_at_the_end_alone(place: Path, way: str) -> None:
    (place / "f").write_bytes(OLD)
    seen: list[tuple[set[str], bytes]] = []
    replace(place / "f", lambda: seen.append((names_in(place), (place / "f").read_bytes())))
    assert len(seen[0][0]) == (1 if way == "O_TMPFILE" else 2)
    assert seen[0][1] == OLD
    assert (place / "f").read_bytes() == NEW
    assert names_in(place) == {"f"}


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()], ids=repr)
def test_a_replacement_that_fails_at_any_step_leaves_the_old_file(place: Path, error: BaseException, way: str) -> None:
    (place / "f").write_bytes(OLD)
    before = own_descriptors()
    for step in range(3 if way == "O_TMPFILE" else 2):  # fsync, link, rename
        with Steps(fail_at=step, error=error).recorded(), pytest.raises(type(error)):
            replace(place / "f")
        assert (place / "f").read_bytes() == OLD
        assert names_in(place) == {"f"}
        assert own_descriptors() == before


def test_a_replacement_that_is_killed_while_it_is_written_leaves_nothing(place: Path) -> None:
    (place / "f").write_bytes(OLD)
    assert run_in_child(lambda: replace(place / "f", lambda: os.kill(os.getpid(), signal.SIGKILL))) == -9
    assert names_in(place) == {"f"}
    assert (place / "f").read_bytes() == OLD


def test_an_interruption_just_as_a_replacement_is_opened_leaves_nothing(
    place: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def interrupted(path: Path, flags: int, *arguments: int) -> int:
        fd = real(path, flags, *arguments)
        os.kill(os.getpid(), signal.SIGINT)
        return fd

    before = own_descriptors()
    monkeypatch.setattr(os, "open", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replace(place / "f")
    monkeypatch.undo()
    assert names_in(place) == set(), way
    assert own_descriptors() == before


# -- publish_directory --------------------------------------------------------------------------------------------


@pytest.fixture
def work(tmp_path: Path) -> Path:
    directory = tmp_path / "tmp" / "work"
    directory.mkdir(parents=True)
    for name in ("disk", "memory"):
        (directory / name).write_bytes(name.encode())
        (directory / name).chmod(0o600)
    return directory


def test_publication_order(work: Path, place: Path) -> None:
    """Every file before its directory, the directory before the rename, both parents after it."""
    assert steps_of(lambda: atomic.publish_directory(work, place / "final")) == [
        ("chmod", "disk 400"),
        ("fsync", "disk"),
        ("chmod", "memory 400"),
        ("fsync", "memory"),
        ("fsync", "work"),
        ("rename_noreplace", "work -> final"),
        ("fsync", "place"),
        ("fsync", "tmp"),
    ]
    assert not work.exists()
    for path in (place / "final").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o400
        assert path.read_bytes() == path.name.encode()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("step", range(8))
def test_a_publication_that_fails_at_any_step_has_not_happened(
    work: Path, place: Path, step: int, error: BaseException
) -> None:
    before = own_descriptors()
    with Steps(fail_at=step, error=error).recorded(), pytest.raises(type(error)):
        atomic.publish_directory(work, place / "final")
    assert names_in(place) == set()
    assert names_in(work) == {"disk", "memory"}
    assert own_descriptors() == before


@pytest.mark.parametrize("step", range(8))
def test_a_publication_that_is_killed_at_any_step_is_whole_or_not_there(work: Path, place: Path, step: int) -> None:
    def killed() -> None:
        with Steps(kill_at=step).recorded():
            atomic.publish_directory(work, place / "final")

    assert run_in_child(killed) == -9
    published = step >= 6
    assert names_in(place) == ({"final"} if published else set())
    assert names_in(place / "final" if published else work) == {"disk", "memory"}


def test_publication_replaces_nothing(work: Path, place: Path) -> None:
    """A plain rename would replace an empty directory."""
    (place / "final").mkdir()
    with pytest.raises(FileExistsError):
        atomic.publish_directory(work, place / "final")
    assert names_in(place / "final") == set()
    assert names_in(work) == {"disk", "memory"}


@pytest.mark.parametrize("kind", ["symlink", "directory", "fifo"])
@pytest.mark.timeout(20)
def test_only_regular_files_are_published(work: Path, place: Path, kind: str) -> None:
    """H46: chmod and fsync through a link would reach a file elsewhere."""
    outside = place.parent / "outside"
    outside.write_bytes(OLD)
    outside.chmod(0o644)
    make: dict[str, Callable[[Path], object]] = {
        "symlink": lambda path: path.symlink_to(outside),
        "directory": Path.mkdir,
        "fifo": os.mkfifo,
    }
    make[kind](work / "kernel")
    with pytest.raises(OSError, match="not a regular file"):
        atomic.publish_directory(work, place / "final")
    assert names_in(place) == set()
    assert stat.S_IMODE(outside.stat().st_mode) == 0o644


# -- the small ones -----------------------------------------------------------------------------------------------


def test_rename_noreplace_names_both_paths_in_its_error(place: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        atomic.rename_noreplace(place / "nothing", place / "target")
    assert (caught.value.filename, caught.value.filename2) == (str(place / "nothing"), str(place / "target"))


def test_remove_tree_does_not_leave_through_a_link(place: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    inner = place / "inner"
    inner.mkdir()
    (inner / "out").symlink_to(outside)
    (inner / "locked").write_text("x")
    (inner / "locked").chmod(0o400)
    link, plain = place / "link", place / "plain"
    link.symlink_to(outside)
    plain.write_text("x")
    for path in (inner, link, plain):
        atomic.remove_tree(path)
    assert names_in(place) == set()
    assert names_in(outside) == {"precious"}


class Thing(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    format_version: int = 1


def test_json_comes_back_and_can_be_read_by_a_person(place: Path) -> None:
    atomic.write_json(place / "thing.json", Thing(name="a"))
    assert atomic.read_json(place / "thing.json", Thing) == Thing(name="a")
    assert (place / "thing.json").read_text() == '{\n  "name": "a",\n  "format_version": 1\n}\n'


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"name": 1, "format_version": 1}', b'{"format_version": 1}', b"[" * 5000, b'{"name": "\xff"}',
     b'{"name": "a", "format_version": 1, "more": 1}', b'{"name": "a", "format_version": "1"}'],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("format_version", [None, 1])
def test_damaged_json_is_corrupt_and_says_where(place: Path, content: bytes, format_version: int | None) -> None:
    (place / "thing.json").write_bytes(content)
    with pytest.raises(CorruptError, match=r"thing\.json is damaged"):
        atomic.read_json(place / "thing.json", Thing, format_version=format_version)


def test_another_version_is_refused_as_such_although_its_fields_are_unknown(place: Path) -> None:
    (place / "thing.json").write_bytes(b'{"format_version": 7, "renamed": true}')
    with pytest.raises(FormatVersionError, match="format version 7; this Ramet reads 1"):
        atomic.read_json(place / "thing.json", Thing, format_version=1)


def test_a_file_that_is_not_there_and_one_that_cannot_be_read(place: Path) -> None:
    with pytest.raises(FileNotFoundError):
        atomic.read_json(place / "thing.json", Thing)
    (place / "thing.json").mkdir()
    with pytest.raises(HostError, match="Is a directory"):
        atomic.read_json(place / "thing.json", Thing)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
