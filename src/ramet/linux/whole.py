"""write(2), pwrite(2) and pread(2) to their end: each may do less than it was told, as on a disk that is nearly full."""

from __future__ import annotations

import os


def write(fd: int, data: bytes | memoryview) -> None:
    """Write all of ``data``.

    Raises:
        OSError: of the write that failed; some of it may be written.
    """
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def pwrite(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset``.

    Raises:
        OSError: of the write that failed; some of it may be written.
    """
    left = memoryview(data)
    while left:
        done = os.pwrite(fd, left, offset)
        left, offset = left[done:], offset + done


def pread(fd: int, into: memoryview, offset: int) -> int:
    """Fill ``into`` from ``offset``; returns how much was read, which is less only where the file ends.

    Raises:
        OSError: of the read that failed.
    """
    done = 0
    while done < len(into):
        count = os.preadv(fd, [into[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done
