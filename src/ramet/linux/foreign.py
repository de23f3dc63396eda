"""Files in a directory that somebody else may write to: what is there may be anything, and another thing a moment later."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def open_regular(path: Path) -> int:
    """A descriptor, for reading, of a regular file that is here and not elsewhere: no symlink is followed, no FIFO waited for.

    Raises:
        OSError: as open(2) says, ELOOP for a symlink; EINVAL if it is no regular file.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return fd


def read_whole(path: Path, *, limit: int) -> bytes:
    """All of it.

    Raises:
        OSError: as ``open_regular`` says; EFBIG if it has more than ``limit`` bytes.
    """
    fd = open_regular(path)
    try:
        size = os.fstat(fd).st_size
        if size > limit:
            raise OSError(errno.EFBIG, f"it has {size} bytes, more than {limit}", str(path))
        return _read(fd, 0, size)
    finally:
        os.close(fd)


def size_bytes(path: Path) -> int:
    """Its size; 0 if there is no such file, or what is there is none."""
    try:
        fd = open_regular(path)
    except OSError:
        return 0
    try:
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


def read_tail(path: Path, *, limit: int) -> bytes:
    """Its last ``limit`` bytes; none if there is no such file, or what is there is none."""
    try:
        fd = open_regular(path)
    except OSError:
        return b""
    try:
        size = os.fstat(fd).st_size
        start = max(size - limit, 0)
        return _read(fd, start, size - start)
    finally:
        os.close(fd)


def _read(fd: int, start: int, count: int) -> bytes:
    found = bytearray()
    while len(found) < count:
        piece = os.pread(fd, count - len(found), start + len(found))
        if not piece:
            break
        found += piece
    return bytes(found)
