"""write(2) and pwrite(2) to their end: each may write less than it was given (a signal, a pipe, a disk that is nearly full)."""

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
