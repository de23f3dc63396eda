"""Where a file's bytes lie: physical extents (FIEMAP) and its data and holes (SEEK_DATA, SEEK_HOLE)."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ramet.linux.ioctl import ioctl, iowr

FIEMAP_HEADER = struct.Struct("=QQIIII")
"""struct fiemap: start, length, flags, mapped_extents, extent_count, reserved."""
FIEMAP_EXTENT = struct.Struct("=QQQ16xI12x")
"""struct fiemap_extent: logical, physical, length, flags."""
FS_IOC_FIEMAP = iowr(ord("f"), 11, FIEMAP_HEADER.size)
FIEMAP_FLAG_SYNC = 0x1
FIEMAP_EXTENT_LAST = 0x1
FIEMAP_EXTENT_SHARED = 0x2000
UNRELIABLE = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800
"""Flags of extents whose physical address says nothing for sure, or whose blocks do not hold what is read: unknown, delayed,
encoded, encrypted, not aligned, inline, a tail, unwritten (<linux/fiemap.h>)."""
BATCH = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """One extent; all in bytes, ``flags`` as in <linux/fiemap.h>."""

    logical: int
    physical: int
    length: int
    flags: int

    @property
    def shared(self) -> bool:
        return bool(self.flags & FIEMAP_EXTENT_SHARED)

    @property
    def end(self) -> int:
        """The first byte of the file behind it."""
        return self.logical + self.length


def count_extents(fd: int) -> int:
    """How many extents a file has, once it is written back. Takes no memory, and a step for each of them.

    Raises:
        OSError: EOPNOTSUPP where the file system cannot tell (tmpfs), and what else the kernel says.
    """
    buffer = bytearray(FIEMAP_HEADER.size)
    FIEMAP_HEADER.pack_into(buffer, 0, 0, 2**64 - 1, FIEMAP_FLAG_SYNC, 0, 0, 0)
    ioctl(fd, FS_IOC_FIEMAP, buffer)
    mapped: int = FIEMAP_HEADER.unpack_from(buffer)[3]
    return mapped


def fiemap(fd: int, *, sync: bool = True) -> list[Extent]:
    """All extents of a file in logical order; ``sync`` writes it back first, so that delayed allocation shows."""
    found: list[Extent] = []
    start = 0
    while True:
        buffer = bytearray(FIEMAP_HEADER.size + BATCH * FIEMAP_EXTENT.size)
        FIEMAP_HEADER.pack_into(buffer, 0, start, 2**64 - 1 - start, FIEMAP_FLAG_SYNC if sync else 0, 0, BATCH, 0)
        ioctl(fd, FS_IOC_FIEMAP, buffer)
        count = FIEMAP_HEADER.unpack_from(buffer)[3]
        if count == 0:
            return found
        for index in range(count):
            logical, physical, length, flags = FIEMAP_EXTENT.unpack_from(
                buffer, FIEMAP_HEADER.size + index * FIEMAP_EXTENT.size
            )
            found.append(Extent(logical=logical, physical=physical, length=length, flags=flags))
        if found[-1].flags & FIEMAP_EXTENT_LAST:
            return found
        start = found[-1].end


def allocated_bytes(extents: Sequence[Extent]) -> int:
    """Bytes in all extents, shared ones too."""
    return sum(extent.length for extent in extents)


def exclusive_bytes(extents: Sequence[Extent]) -> int:
    """Bytes that no other file shares."""
    return sum(extent.length for extent in extents if not extent.shared)


def union(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges joined where they touch or overlap: sorted and disjoint."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined


def map_data(fd: int) -> Iterator[tuple[int, int]]:
    """The (start, end) of each run of data, in order; what lies between reads as zeros (lseek(2))."""
    size = os.fstat(fd).st_size
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as err:
            if err.errno == errno.ENXIO:  # no data after position
                return
            raise
        if start >= size:
            return
        position = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        yield start, position


def changed_since(fd: int, base_fd: int) -> list[tuple[int, int]]:
    """The (start, end) of whatever in a file may differ from ``base_fd``, which has the same size: what does not lie in the very
    blocks in which it lies there. Where nothing is shared, that is all data of both.

    Both are written back first. The base must not be written meanwhile, nor since it was cloned into this file.

    Raises:
        OSError: EOPNOTSUPP where the file system cannot tell (tmpfs), and what else the kernel says.
    """
    ours, theirs = fiemap(fd), fiemap(base_fd)
    same: list[tuple[int, int]] = []
    mine = base = 0
    while mine < len(ours) and base < len(theirs):
        one, other = ours[mine], theirs[base]
        low, high = max(one.logical, other.logical), min(one.end, other.end)
        if low < high and _are_same_blocks(one, other):
            same.append((low, high))
        if one.end <= other.end:
            mine += 1
        else:
            base += 1
    return _without(union((one.logical, one.end) for one in ours + theirs), same)


def _are_same_blocks(one: Extent, other: Extent) -> bool:
    """Both must say that they are shared: some file systems (SMB) make addresses up."""
    reliable = not (one.flags | other.flags) & UNRELIABLE
    return one.shared and other.shared and reliable and one.physical - one.logical == other.physical - other.logical


def _without(spans: Sequence[tuple[int, int]], holes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """``spans`` less ``holes``; both in order and without overlaps, each hole within one span."""
    left: list[tuple[int, int]] = []
    index = 0
    for start, end in spans:
        position = start
        while index < len(holes) and holes[index][0] < end:
            low, high = holes[index]
            if position < low:
                left.append((position, low))
            position = high
            index += 1
        if position < end:
            left.append((position, end))
    return left
