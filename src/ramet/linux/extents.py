"""Where a file's bytes lie: physical extents (FIEMAP) and its data and holes (SEEK_DATA, SEEK_HOLE)."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator, Sequence
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
        start = found[-1].logical + found[-1].length


def allocated_bytes(extents: Sequence[Extent]) -> int:
    """Bytes in all extents, shared ones too."""
    return sum(extent.length for extent in extents)


def exclusive_bytes(extents: Sequence[Extent]) -> int:
    """Bytes that no other file shares."""
    return sum(extent.length for extent in extents if not extent.shared)


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
