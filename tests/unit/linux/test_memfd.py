"""Sealed files in RAM: the kernel refuses every way to write one, and a private mapping of it is told from its pages."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ramet.linux import memfd
from ramet.linux.pagemap import PAGE_BYTES, Method
from tests.unit.linux.own_mapping import OwnMapping

PAGES = 16


@pytest.fixture
def sealed() -> Iterator[int]:
    fd = memfd.create("ramet-test")
    os.pwrite(fd, b"file" * (PAGES * PAGE_BYTES // 4), 0)
    assert not memfd.is_sealed(fd)
    memfd.seal(fd)
    yield fd
    os.close(fd)


@pytest.mark.parametrize(
    "write",
    [
        lambda fd: os.pwrite(fd, b"x", 0),
        lambda fd: os.ftruncate(fd, PAGE_BYTES),
        lambda fd: os.ftruncate(fd, 2 * PAGES * PAGE_BYTES),
        lambda fd: os.posix_fallocate(fd, 0, 2 * PAGES * PAGE_BYTES),
        lambda fd: mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
        lambda fd: memfd.seal(fd),
    ],
)
def test_no_descriptor_writes_it_however_it_was_opened(sealed: int, write: Callable[[int], object]) -> None:
    again = os.open(f"/proc/self/fd/{sealed}", os.O_RDWR | os.O_CLOEXEC)
    try:
        for fd in (sealed, again):
            with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is what is looked at
                write(fd)
            assert caught.value.errno == errno.EPERM
        assert os.pread(sealed, 4, 0) == b"file"
    finally:
        os.close(again)


def test_a_file_of_a_file_system_is_not_sealed(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as stream:
        assert not memfd.is_sealed(stream.fileno())


def test_this_kernel_can_and_one_that_cannot_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memfd.why_not() is None
    monkeypatch.setattr(memfd, "SEALS", 0)
    assert memfd.why_not() == "a sealed memfd can be written here"
    monkeypatch.setattr(memfd, "SEALS", 1 << 30)
    assert memfd.why_not() == "no seals on a memfd (Invalid argument)"


@pytest.mark.parametrize("method", ["scan", "pagemap"])
def test_of_a_private_mapping_only_what_was_written_counts_as_written(sealed: int, method: Method) -> None:
    """The file's own pages are in RAM and in no file system: they must not pass for the process's."""
    with OwnMapping(Path(f"/proc/self/fd/{sealed}")) as mapping:
        mapping.touch()
        assert mapping.written(method) == []
        mapping.write(3)
        mapping.write(PAGES - 1)
        assert mapping.written(method) == [3, PAGES - 1]
    assert os.pread(sealed, 4, 3 * PAGE_BYTES) == b"file"
