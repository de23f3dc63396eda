"""/proc/PID/mem: short reads are completed, and what is not mapped is an error."""

from __future__ import annotations

import errno
import os
from itertools import pairwise
from pathlib import Path

import pytest

from ramet.linux import procfs, procmem
from ramet.linux.pagemap import PAGE_BYTES
from tests.unit.children import Mapper
from tests.unit.linux.own_mapping import OwnMapping, make_file

PAGES = 8


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    path = make_file(tmp_path / "file", PAGES, [0, 2])
    with path.open("r+b") as stream:
        stream.seek(3 * PAGE_BYTES)
        stream.write(bytes(range(256)) * 16)
    return path.read_bytes()


def test_another_process_is_read_as_it_sees_itself(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    with Mapper(path) as child:
        child.write(5 * PAGE_BYTES + 100, b"private")
        [mapping] = procfs.mappings_of_file(child.pid, path)
        buffer = bytearray(len(content))
        fd = procmem.open_memory(child.pid)
        try:
            procmem.read_into(fd, mapping.start, memoryview(buffer))
        finally:
            os.close(fd)
        assert bytes(buffer) == child.read() != content


def test_short_reads_are_completed(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """H34."""
    real = os.preadv
    counts: list[int] = []

    def short(fd: int, buffers: list[memoryview], offset: int) -> int:
        counts.append(real(fd, [buffers[0][:777]], offset))
        return counts[-1]

    with OwnMapping(tmp_path / "file") as mapping:
        buffer = bytearray(len(content))
        fd = procmem.open_memory(os.getpid())
        monkeypatch.setattr(os, "preadv", short)
        try:
            procmem.read_into(fd, mapping.start, memoryview(buffer))
        finally:
            os.close(fd)
    assert bytes(buffer) == content
    assert len(counts) > 40


def test_what_is_not_mapped_is_eio(tmp_path: Path, content: bytes) -> None:
    with Mapper(tmp_path / "file", pieces=[(0, 4 * PAGE_BYTES)]) as child:
        [mapping] = procfs.mappings_of_file(child.pid, tmp_path / "file")
        gap = next(
            left.end
            for left, right in pairwise(procfs.mappings(child.pid))
            if left.end < right.start and "r" in left.perms
        )
        fd = procmem.open_memory(child.pid)
        try:
            for address in (0x1000, gap, gap - PAGE_BYTES):  # nothing; nothing; one page and then nothing
                with pytest.raises(OSError, match=r".") as caught:
                    procmem.read_into(fd, address, memoryview(bytearray(2 * PAGE_BYTES)))
                assert caught.value.errno == errno.EIO
            assert mapping.end - mapping.start == 4 * PAGE_BYTES
        finally:
            os.close(fd)


def test_a_process_that_ends_meanwhile_is_eio_and_not_zeros(tmp_path: Path, content: bytes) -> None:
    with Mapper(tmp_path / "file") as child:
        [mapping] = procfs.mappings_of_file(child.pid, tmp_path / "file")
        fd = procmem.open_memory(child.pid)
        try:
            child.end()
            with pytest.raises(OSError, match=r".") as caught:
                procmem.read_into(fd, mapping.start, memoryview(bytearray(PAGE_BYTES)))
        finally:
            os.close(fd)
        assert caught.value.errno == errno.EIO


def test_the_descriptor_cannot_write() -> None:
    fd = procmem.open_memory(os.getpid())
    try:
        with pytest.raises(OSError, match=r"Bad file descriptor"):
            os.pwrite(fd, b"x", 0)
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)
