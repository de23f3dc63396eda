"""A private file mapping of the test's own process, with its address."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from ramet.linux.pagemap import PAGE_BYTES, Method, Region, written_regions


def make_file(path: Path, pages: int, data_pages: Sequence[int] = ()) -> Path:
    """A sparse file of ``pages`` pages, with bytes in some of them."""
    with path.open("wb") as stream:
        stream.truncate(pages * PAGE_BYTES)
        for page in data_pages:
            stream.seek(page * PAGE_BYTES)
            stream.write(b"file" * (PAGE_BYTES // 4))
    return path


class OwnMapping:
    """``path`` mapped MAP_PRIVATE."""

    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.bytes = mmap.mmap(fd, 0, mmap.MAP_PRIVATE)
        finally:
            os.close(fd)
        self.start = ctypes.addressof(ctypes.c_char.from_buffer(self.bytes))
        self.end = self.start + len(self.bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.bytes.close()

    def write(self, page: int, data: bytes = b"mine") -> None:
        self.bytes[page * PAGE_BYTES : page * PAGE_BYTES + len(data)] = data

    def touch(self) -> None:
        """Read every page, so that each is in the page table."""
        for offset in range(0, len(self.bytes), PAGE_BYTES):
            _ = self.bytes[offset]

    def regions(self, method: Method) -> list[Region]:
        return written_regions(os.getpid(), self.start, self.end, method=method)

    def written(self, method: Method) -> list[int]:
        """The indexes of the pages that the kernel says were written."""
        return [
            (address - self.start) // PAGE_BYTES
            for region in self.regions(method)
            for address in range(region.start, region.end, PAGE_BYTES)
        ]
