"""Which pages of a private file mapping its process has written: its private anonymous pages.

A MAP_PRIVATE page of a file is the file's (page cache) until it is written; then the process owns an anonymous copy, in RAM or
in swap. Two ways to find those, with the same answer:

- ``PAGEMAP_SCAN`` (Linux 6.7, Documentation/admin-guide/mm/pagemap.rst), which walks page tables and skips what is absent;
- the 64-bit entries of /proc/PID/pagemap: bit 63 present, bit 62 swapped, bit 61 file-mapped or shared-anonymous.

The entries also tell which it has written since its soft-dirty bits were cleared (``soft_dirty.py``): bit 55.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import re
import struct
from typing import Literal, NamedTuple

from ramet.linux.ioctl import ioctl, iowr

PAGE_BYTES = mmap.PAGESIZE
PM_SCAN_ARG = struct.Struct("=QQQQQQQQQQQQ")
"""struct pm_scan_arg: size, flags, start, end, walk_end, vec, vec_len, max_pages, category_inverted, category_mask,
category_anyof_mask, return_mask (<linux/fs.h>)."""
PAGE_REGION = struct.Struct("=QQQ")
"""struct page_region: start, end, categories."""
PAGEMAP_SCAN = iowr(ord("f"), 16, PM_SCAN_ARG.size)
PAGE_IS_FILE = 1 << 2
PAGE_IS_PRESENT = 1 << 3
PAGE_IS_SWAPPED = 1 << 4
VECTOR_LENGTH = 512
"""Linux 6.18 reports regions twice with large vectors."""
ENTRY_BYTES = 8
CHUNK_ENTRIES = 128 * 1024

Method = Literal["auto", "scan", "pagemap"]


class Region(NamedTuple):
    """A run of pages: addresses, ``end`` exclusive."""

    start: int
    end: int


# The top byte of an entry holds bits 56 to 63: present 0x80, swapped 0x40, file 0x20.
_IS_WRITTEN = bytes(1 if (top & 0xC0) and not (top & 0x20) else 0 for top in range(256))
_IS_SOFT_DIRTY = bytes(1 if low & 0x80 else 0 for low in range(256))
"""Of the byte below, with bits 48 to 55."""
_RUN = re.compile(b"\x01+")


def written_regions(
    pid: int, start: int, end: int, *, since_cleared: bool = False, method: Method = "auto"
) -> list[Region]:
    """The pages in ``[start, end)`` of a MAP_PRIVATE file mapping that process ``pid`` has written, joined, in address order.

    ``since_cleared``: only since its soft-dirty bits were. Of a process that runs, each as it is at some moment of the call.
    ``auto`` scans where the kernel can; what ``since_cleared`` asks for is always read off the entries.
    """
    if not since_cleared and (method == "scan" or (method == "auto" and has_pagemap_scan())):
        return scan_pagemap(pid, start, end)
    return read_pagemap(pid, start, end, since_cleared=since_cleared)


def scan_pagemap(pid: int, start: int, end: int) -> list[Region]:
    """``written_regions`` by PAGEMAP_SCAN."""
    fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _scan(fd, start, end)
    finally:
        os.close(fd)


def _scan(fd: int, start: int, end: int) -> list[Region]:
    vector = (ctypes.c_char * (VECTOR_LENGTH * PAGE_REGION.size))()
    found: list[Region] = []
    position = start
    while position < end:
        argument = bytearray(
            PM_SCAN_ARG.pack(
                PM_SCAN_ARG.size,
                0,
                position,
                end,
                0,
                ctypes.addressof(vector),
                VECTOR_LENGTH,
                0,
                PAGE_IS_FILE,  # inverted: a page matches if it is not the file's
                PAGE_IS_FILE,
                PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
                PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            )
        )
        count = ioctl(fd, PAGEMAP_SCAN, argument)
        walk_end = PM_SCAN_ARG.unpack(argument)[4]
        for index in range(count):
            low, high, _ = PAGE_REGION.unpack_from(vector, index * PAGE_REGION.size)
            if found and low < found[-1].end:
                raise OSError(errno.EIO, f"PAGEMAP_SCAN reported {low:#x} after {found[-1].end:#x}")
            if found and low == found[-1].end:
                found[-1] = Region(found[-1].start, high)
            else:
                found.append(Region(low, high))
        if walk_end <= position:
            raise OSError(errno.EIO, f"PAGEMAP_SCAN did not advance from {position:#x}")
        position = walk_end
    return found


def read_pagemap(pid: int, start: int, end: int, *, since_cleared: bool = False) -> list[Region]:
    """``written_regions`` by the entries of /proc/PID/pagemap, eight bytes a page."""
    found: list[Region] = []
    fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        first = start // PAGE_BYTES
        last = end // PAGE_BYTES
        for index in range(first, last, CHUNK_ENTRIES):
            entries = _read_entries(fd, index, min(CHUNK_ENTRIES, last - index))
            flags = entries[ENTRY_BYTES - 1 :: ENTRY_BYTES].translate(_IS_WRITTEN)
            if since_cleared:
                flags = _both(flags, entries[ENTRY_BYTES - 2 :: ENTRY_BYTES].translate(_IS_SOFT_DIRTY))
            for run in _RUN.finditer(flags):
                low, high = ((index + edge) * PAGE_BYTES for edge in run.span())
                if found and low == found[-1].end:
                    found[-1] = Region(found[-1].start, high)
                else:
                    found.append(Region(low, high))
    finally:
        os.close(fd)
    return found


def _both(one: bytes, other: bytes) -> bytes:
    return (int.from_bytes(one, "little") & int.from_bytes(other, "little")).to_bytes(len(one), "little")


def _read_entries(fd: int, index: int, count: int) -> bytes:
    parts = []
    wanted = count * ENTRY_BYTES
    offset = index * ENTRY_BYTES
    while wanted:
        part = os.pread(fd, wanted, offset)
        if not part:
            raise OSError(errno.ESRCH, "the process ended while its page map was read")
        parts.append(part)
        offset += len(part)
        wanted -= len(part)
    return b"".join(parts)


@functools.cache
def has_pagemap_scan() -> bool:
    """Whether the kernel has PAGEMAP_SCAN, by trying it on a page of our own."""
    buffer = ctypes.create_string_buffer(1)
    page = ctypes.addressof(buffer) // PAGE_BYTES * PAGE_BYTES
    try:
        scan_pagemap(os.getpid(), page, page + PAGE_BYTES)
    except OSError as err:
        if err.errno in (errno.ENOTTY, errno.EINVAL):
            return False
        raise
    return True
