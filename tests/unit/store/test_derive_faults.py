"""``derive`` when the kernel refuses, fails, or does less than it was asked (H31, H34, H77): faults injected."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ramet.errors import HostError, NoSpaceError, UnsupportedError
from ramet.linux import reflink
from ramet.model import Method
from ramet.store import derive as module
from ramet.store.derive import derive
from tests.unit.layouts import BLOCK, Layout, write_layout

ANY = frozenset({Method.REFLINK, Method.COPY})
REFLINK = frozenset({Method.REFLINK})
COPY = frozenset({Method.COPY})
NOT_HERE = ["EOPNOTSUPP", "EXDEV", "EINVAL", "ENOTTY", "ETXTBSY"]
ERRORS = sorted(
    {name for name in errno.errorcode.values() if getattr(errno, name) not in module.CANNOT_REFLINK} - {"EAGAIN"}
)


def failing(number: int) -> Callable[..., int]:
    def fail(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    return fail


def forbidden(*_: object, **__: object) -> int:
    raise AssertionError("this would be a silent fall-back")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    layout = Layout(size=30 * BLOCK + 9, data={1: b"a" * BLOCK, 2: b"b" * BLOCK, 3: b"c" * BLOCK, 30: b"tail"})
    return write_layout(tmp_path / "source", layout)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    directory = tmp_path / "place"
    directory.mkdir()
    return directory


# -- FICLONE ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NOT_HERE)
def test_not_here_is_a_copy_if_that_is_allowed(
    source: Path, place: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(reflink, "ficlone", failing(getattr(errno, name)))
    assert derive(source, place / "copy", allow=ANY) is Method.COPY
    assert (place / "copy").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("name", NOT_HERE)
def test_not_here_is_unsupported_if_it_is_not(
    source: Path, place: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    number = getattr(errno, name)
    monkeypatch.setattr(reflink, "ficlone", failing(number))
    monkeypatch.setattr(module, "_read_write", forbidden)
    monkeypatch.setattr(os, "copy_file_range", forbidden)
    with pytest.raises(UnsupportedError) as caught:
        derive(source, place / "copy", allow=REFLINK)
    assert (caught.value.capability, caught.value.why) == ("reflink", f"FICLONE: {os.strerror(number)}")
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("name", ERRORS)
def test_every_other_errno_is_an_error_and_never_a_fall_back(
    source: Path, place: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    number = getattr(errno, name)
    monkeypatch.setattr(reflink, "ficlone", failing(number))
    monkeypatch.setattr(module, "_read_write", forbidden)
    monkeypatch.setattr(os, "copy_file_range", forbidden)
    with pytest.raises(HostError, match="Could not derive") as caught:
        derive(source, place / "copy", allow=ANY)
    assert isinstance(caught.value, NoSpaceError) == (name in ("ENOSPC", "EDQUOT"))
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == number
    assert list(place.iterdir()) == []


def test_again_is_tried_again_after_an_fsync_of_the_source(
    source: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H77: ZFS answers so while the source is dirty."""
    calls: list[str] = []
    real_fsync = os.fsync

    def clone(dst_fd: int, src_fd: int) -> None:
        calls.append("ficlone")
        if calls.count("ficlone") < 3:
            raise OSError(errno.EAGAIN, "dirty")
        os.pwrite(dst_fd, os.pread(src_fd, 1 << 20, 0), 0)

    def fsync(fd: int) -> None:
        calls.append(Path(f"/proc/self/fd/{fd}").readlink().name)
        real_fsync(fd)

    monkeypatch.setattr(reflink, "ficlone", clone)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(module, "_read_write", forbidden)
    assert derive(source, place / "copy", allow=ANY) is Method.REFLINK
    assert calls == ["ficlone", "source", "ficlone", "source", "ficlone"]
    assert (place / "copy").read_bytes() == source.read_bytes()


def test_again_for_ever_is_an_error_and_not_a_copy(source: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflink, "ficlone", failing(errno.EAGAIN))
    monkeypatch.setattr(module, "_read_write", forbidden)
    monkeypatch.setattr(os, "copy_file_range", forbidden)
    with pytest.raises(HostError, match="temporarily unavailable"):
        derive(source, place / "copy", allow=ANY)
    assert list(place.iterdir()) == []


def test_an_fsync_that_fails_between_the_attempts_is_an_error(
    source: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reflink, "ficlone", failing(errno.EAGAIN))
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(HostError, match="Input/output error"):
        derive(source, place / "copy", allow=ANY)
    assert list(place.iterdir()) == []


def test_the_destination_is_empty_when_ficlone_is_asked(
    source: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Truncating before FICLONE is the classic way to lose holes and to leave a file of zeros behind."""

    def clone(dst_fd: int, src_fd: int) -> None:
        assert os.fstat(dst_fd).st_size == 0
        assert os.fstat(src_fd).st_size == 30 * BLOCK + 9
        raise OSError(errno.EOPNOTSUPP, "not here")

    monkeypatch.setattr(reflink, "ficlone", clone)
    assert derive(source, place / "copy", allow=ANY) is Method.COPY


def test_a_clone_of_another_size_is_refused(source: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A FICLONE that says yes and does nothing must not publish an empty file."""
    monkeypatch.setattr(reflink, "ficlone", lambda dst_fd, src_fd: None)
    with pytest.raises(HostError, match="has 0 bytes"):
        derive(source, place / "copy", allow=ANY)
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("name", ["EOPNOTSUPP", "ENOTTY", "EPERM", "EINVAL"])
def test_a_file_system_without_the_cow_hint_is_no_error(
    source: Path, place: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def clone(dst_fd: int, src_fd: int) -> None:
        os.pwrite(dst_fd, os.pread(src_fd, 1 << 20, 0), 0)

    monkeypatch.setattr(reflink, "ficlone", clone)
    monkeypatch.setattr(reflink, "set_cow_extent_size", failing(getattr(errno, name)))
    assert derive(source, place / "copy", allow=ANY) is Method.REFLINK


# -- copying ------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_reflinks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflink, "ficlone", failing(errno.EOPNOTSUPP))


def limited(limit: int) -> Callable[..., int]:
    """A copy_file_range that does at most ``limit`` bytes at a time."""
    real = os.copy_file_range

    def copy(src: int, dst: int, count: int, *, offset_src: int, offset_dst: int) -> int:
        return real(src, dst, min(count, limit), offset_src=offset_src, offset_dst=offset_dst)

    return copy


@pytest.mark.usefixtures("no_reflinks")
@pytest.mark.parametrize("limit", [1000, BLOCK])
def test_copy_file_range_that_does_less_than_asked(
    source: Path, place: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(os, "copy_file_range", limited(limit))
    monkeypatch.setattr(module, "_read_write", forbidden)
    assert derive(source, place / "copy", allow=ANY) is Method.COPY
    assert (place / "copy").read_bytes() == source.read_bytes()


@pytest.mark.usefixtures("no_reflinks")
def test_copy_file_range_that_returns_nothing(source: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems answer 0 instead of copying: taken for the end of the file, it would leave zeros."""
    monkeypatch.setattr(os, "copy_file_range", lambda *_, **__: 0)
    assert derive(source, place / "copy", allow=ANY) is Method.COPY
    assert (place / "copy").read_bytes() == source.read_bytes()


@pytest.mark.usefixtures("no_reflinks")
def test_copy_file_range_that_gives_up_half_way(source: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [limited(BLOCK + 100), failing(errno.EXDEV)]

    def copy(*arguments: int, **offsets: int) -> int:
        return answers.pop(0)(*arguments, **offsets) if answers else 0

    monkeypatch.setattr(os, "copy_file_range", copy)
    assert derive(source, place / "copy", allow=ANY) is Method.COPY
    assert (place / "copy").read_bytes() == source.read_bytes()


@pytest.mark.usefixtures("no_reflinks")
@pytest.mark.parametrize("name", ["EXDEV", "EINVAL", "ENOSYS", "EOPNOTSUPP"])
def test_a_kernel_that_cannot_copy_ranges(
    source: Path, place: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(os, "copy_file_range", failing(getattr(errno, name)))
    assert derive(source, place / "copy", allow=ANY) is Method.COPY
    assert (place / "copy").read_bytes() == source.read_bytes()


@pytest.mark.usefixtures("no_reflinks")
@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EIO", "EPERM", "EBADF", "ENOMEM"])
@pytest.mark.parametrize("call", ["copy_file_range", "pwrite", "preadv", "ftruncate"])
def test_an_error_of_the_copy_is_an_error_and_nothing_is_left(
    source: Path, place: Path, monkeypatch: pytest.MonkeyPatch, name: str, call: str
) -> None:
    monkeypatch.setattr(os, call, failing(getattr(errno, name)))
    with pytest.raises(NoSpaceError if name in ("ENOSPC", "EDQUOT") else HostError):
        derive(source, place / "copy", allow=ANY if call == "copy_file_range" else COPY)
    assert list(place.iterdir()) == []


def test_short_reads_and_short_writes_are_completed(source: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_read, real_write = os.preadv, os.pwrite
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: real_read(fd, [buffers[0][:1234]], offset))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real_write(fd, data[:99], offset))
    assert derive(source, place / "copy", allow=COPY) is Method.COPY
    assert (place / "copy").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("allow", [ANY, COPY], ids=["any", "copy"])
def test_an_interruption_leaves_nothing(
    source: Path, place: Path, monkeypatch: pytest.MonkeyPatch, allow: frozenset[Method]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "map_data", interrupted)
    monkeypatch.setattr(reflink, "ficlone", interrupted)
    with pytest.raises(KeyboardInterrupt):
        derive(source, place / "copy", allow=allow)
    assert list(place.iterdir()) == []
