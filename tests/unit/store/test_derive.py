"""``derive`` on the file system of the test directory: content, holes, inodes, refusals, and a kill at each step.

What FICLONE itself does is tested on real XFS and btrfs in tests/vm; its errors in test_derive_faults.py.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from ramet.errors import ConflictError, HostError, UnsupportedError
from ramet.linux import reflink
from ramet.linux.extents import map_data
from ramet.model import Method
from ramet.store import derive as module
from ramet.store.derive import derive, probe_reflink
from tests.unit.children import own_descriptors, run_in_child
from tests.unit.layouts import BLOCK, Layout, allocated, layouts, write_layout
from tests.unit.steps import Steps

ANY = frozenset({Method.REFLINK, Method.COPY})
COPY = frozenset({Method.COPY})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    layout = Layout(size=40 * BLOCK + 77, data={0: b"first", 9: b"x" * BLOCK, 40: b"the end"})
    return write_layout(tmp_path / "source", layout)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    directory = tmp_path / "place"
    directory.mkdir()
    return directory


def data_of(path: Path) -> list[tuple[int, int]]:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
        return list(map_data(stream.fileno()))


@pytest.mark.parametrize("allow", [ANY, COPY], ids=["any", "copy"])
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(layout=layouts())
def test_bytes_are_equal_and_holes_are_kept(tmp_path: Path, allow: frozenset[Method], layout: Layout) -> None:
    """H33: compared by bytes *and* by allocation, before and after writeback."""
    source = write_layout(tmp_path / "source", layout)
    copy = tmp_path / "copy"
    copy.unlink(missing_ok=True)
    method = derive(source, copy, allow=allow)
    assert method in allow
    assert copy.read_bytes() == source.read_bytes()
    source_data, copy_data = data_of(source), data_of(copy)
    blocks = [
        {block for low, high in runs for block in range(low // BLOCK, -(-high // BLOCK))}
        for runs in (source_data, copy_data)
    ]
    assert blocks[1] <= blocks[0], "what was a hole is one"
    assert allocated(copy) <= allocated(source)


def test_the_derived_file_is_a_file_of_its_own(source: Path, place: Path) -> None:
    copy = place / "copy"
    derive(source, copy, allow=ANY)
    before = source.read_bytes()
    mine, theirs = copy.stat(), source.stat()
    assert mine.st_ino != theirs.st_ino
    assert (mine.st_nlink, theirs.st_nlink) == (1, 1)
    assert stat.S_IMODE(mine.st_mode) == 0o600
    with copy.open("r+b") as stream:
        stream.write(b"WRITTEN")
    assert source.read_bytes() == before
    assert [entry.name for entry in place.iterdir()] == ["copy"]


def test_the_source_may_be_read_only_and_its_mode_is_not_taken_over(source: Path, place: Path) -> None:
    source.chmod(0o400)
    derive(source, place / "copy", allow=ANY, mode=0o640)
    assert stat.S_IMODE((place / "copy").stat().st_mode) == 0o640
    assert stat.S_IMODE(source.stat().st_mode) == 0o400


def test_copy_alone_writes_bytes_where_the_kernel_would_share_them(
    source: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """copy_file_range(2) makes reflinks wherever it can; a caller who wants none would be told COPY and get shared extents."""

    def forbidden(*_: object, **__: object) -> int:
        raise AssertionError("that may share extents")

    monkeypatch.setattr(os, "copy_file_range", forbidden)
    monkeypatch.setattr(reflink, "ficlone", forbidden)
    assert derive(source, place / "copy", allow=COPY) is Method.COPY
    assert (place / "copy").read_bytes() == source.read_bytes()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["symlink", "dangling", "fifo", "directory", "socket", "device", "nothing"])
def test_only_a_regular_file_is_a_source(source: Path, place: Path, tmp_path: Path, kind: str) -> None:
    """A FIFO must not block for ever, a link must not lead elsewhere (H46)."""
    other = tmp_path / "other"
    make: dict[str, Callable[[], object]] = {
        "symlink": lambda: other.symlink_to(source),
        "dangling": lambda: other.symlink_to(tmp_path / "nowhere"),
        "fifo": lambda: os.mkfifo(other),
        "directory": other.mkdir,
        "socket": lambda: socket.socket(socket.AF_UNIX).bind(str(other)),
        "device": lambda: None,
        "nothing": lambda: None,
    }
    make[kind]()
    before = own_descriptors()
    with pytest.raises(HostError):
        derive(Path("/dev/zero") if kind == "device" else other, place / "copy", allow=ANY)
    assert list(place.iterdir()) == []
    assert own_descriptors() == before


@pytest.mark.parametrize("kind", ["file", "symlink", "directory"])
def test_an_existing_destination_is_a_conflict_and_stays(source: Path, place: Path, tmp_path: Path, kind: str) -> None:
    outside = tmp_path / "outside"
    copy = place / "copy"
    make: dict[str, Callable[[], object]] = {
        "file": lambda: copy.write_bytes(b"mine"),
        "symlink": lambda: copy.symlink_to(outside),
        "directory": copy.mkdir,
    }
    make[kind]()
    before = copy.lstat()
    with pytest.raises(ConflictError, match="exists already"):
        derive(source, copy, allow=ANY)
    assert copy.lstat() == before
    assert not outside.exists()
    assert [entry.name for entry in place.iterdir()] == ["copy"]


def test_no_directory_for_the_destination(source: Path, place: Path) -> None:
    with pytest.raises(HostError, match="No such file or directory"):
        derive(source, place / "missing" / "copy", allow=ANY)


@pytest.mark.parametrize("allow", [ANY, COPY], ids=["any", "copy"])
@pytest.mark.parametrize("new_size", [0, 3, 40 * BLOCK + 78, 90 * BLOCK])
def test_a_source_that_changes_its_size_meanwhile(
    source: Path, place: Path, monkeypatch: pytest.MonkeyPatch, allow: frozenset[Method], new_size: int
) -> None:
    """H32, H03."""
    changing(monkeypatch, lambda: os.truncate(source, new_size))
    with pytest.raises(HostError, match="changed its size from"):
        derive(source, place / "copy", allow=allow)
    assert list(place.iterdir()) == []


def test_a_source_that_is_written_meanwhile(source: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.utime(source, (1, 1))

    def write() -> None:
        with source.open("r+b") as stream:
            stream.seek(9 * BLOCK)
            stream.write(b"torn")

    changing(monkeypatch, write)
    with pytest.raises(HostError, match="was written while it was copied"):
        derive(source, place / "copy", allow=ANY)
    assert list(place.iterdir()) == []


def test_a_source_that_is_truncated_under_the_copy(source: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end comes before that of its last run of data."""
    monkeypatch.setattr(module, "map_data", lambda fd: iter([(0, 100 * BLOCK)]))
    with pytest.raises(HostError, match="truncated while it was copied"):
        derive(source, place / "copy", allow=COPY)
    assert list(place.iterdir()) == []


def changing(monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> None:
    """Let ``change`` happen after the last byte was copied and before the copy is accepted."""
    real = module._fill

    def fill(src_fd: int, dst_fd: int, size: int, allow: frozenset[Method]) -> Method:
        method = real(src_fd, dst_fd, size, allow)
        change()
        return method

    monkeypatch.setattr(module, "_fill", fill)


# -- killed, and durable ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["before", "half-way", "after"])
def test_killed_while_it_fills_leaves_only_a_temporary_name(source: Path, place: Path, point: str) -> None:
    """H40: forced at named points."""

    def killed() -> None:
        real = module._fill

        def fill(src_fd: int, dst_fd: int, size: int, allow: frozenset[Method]) -> Method:
            if point == "half-way":
                os.ftruncate(dst_fd, size)
                os.pwrite(dst_fd, b"first", 0)
            if point == "after":
                real(src_fd, dst_fd, size, allow)
            os.kill(os.getpid(), signal.SIGKILL)
            return Method.COPY

        module._fill = fill
        derive(source, place / "copy", allow=ANY)

    assert run_in_child(killed) == -9
    [left] = place.iterdir()
    assert left.name.startswith(".copy.")


@pytest.mark.parametrize(("step", "there"), [(0, False), (1, False), (2, True)])
def test_killed_at_any_step_of_becoming_durable(source: Path, place: Path, step: int, there: bool) -> None:
    def killed() -> None:
        with Steps(kill_at=step).recorded():
            derive(source, place / "copy", allow=COPY, durable=True)

    assert run_in_child(killed) == -9
    [left] = place.iterdir()
    assert left.name == "copy" if there else left.name.startswith(".copy.")
    assert left.stat().st_nlink == 1, "never two names: a snapshot's file with two is refused as corrupt"
    if there:
        assert left.read_bytes() == source.read_bytes()


def test_durable_is_fsynced_before_the_rename_and_its_directory_after(source: Path, place: Path) -> None:
    """H48."""
    with Steps().recorded() as seen:
        derive(source, place / "copy", allow=COPY, durable=True)
    assert [verb for verb, _ in seen] == ["fsync", "rename_noreplace", "fsync"]
    assert seen[0][1].startswith(".copy.")
    assert seen[2] == ("fsync", "place")


@pytest.mark.parametrize("step", range(3))
def test_what_could_not_be_made_durable_is_not_there(source: Path, place: Path, step: int) -> None:
    with Steps(fail_at=step).recorded(), pytest.raises(HostError, match="Input/output error"):
        derive(source, place / "copy", allow=COPY, durable=True)
    assert list(place.iterdir()) == []


# -- the probe ----------------------------------------------------------------------------------------------------


def test_the_probe_says_what_derive_would_do(source: Path, place: Path) -> None:
    why = probe_reflink(place)
    assert list(place.iterdir()) == []
    if why is None:
        assert derive(source, place / "copy", allow=frozenset({Method.REFLINK})) is Method.REFLINK
    else:
        with pytest.raises(UnsupportedError) as caught:
            derive(source, place / "copy", allow=frozenset({Method.REFLINK}))
        assert caught.value.why == why
        assert list(place.iterdir()) == []


def test_the_probe_never_shows_a_name(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It works in tmp/, where another command's sweep would take what it sees."""
    seen: list[Path] = []
    monkeypatch.setattr(reflink, "ficlone", lambda dst, src: seen.extend(place.iterdir()))
    assert probe_reflink(place) is None
    assert seen == []


def test_a_probe_of_a_directory_that_is_not_there_is_a_host_error(place: Path) -> None:
    with pytest.raises(HostError, match="No such file or directory"):
        probe_reflink(place / "missing")
