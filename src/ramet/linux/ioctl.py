"""ioctl numbers, built as <asm-generic/ioctl.h> does, and the call itself."""

from __future__ import annotations

import fcntl

_WRITE, _READ = 1, 2


def _ioc(direction: int, kind: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | kind << 8 | number


def io(kind: int, number: int) -> int:
    """``_IO``: no argument."""
    return _ioc(0, kind, number, 0)


def ior(kind: int, number: int, size: int) -> int:
    """``_IOR``: the kernel writes ``size`` bytes for us to read."""
    return _ioc(_READ, kind, number, size)


def iow(kind: int, number: int, size: int) -> int:
    """``_IOW``: the kernel reads ``size`` bytes that we have written."""
    return _ioc(_WRITE, kind, number, size)


def iowr(kind: int, number: int, size: int) -> int:
    """``_IOWR``: both."""
    return _ioc(_READ | _WRITE, kind, number, size)


def ioctl(fd: int, request: int, argument: bytearray) -> int:
    """ioctl(2) with an in-out structure; returns the call's result."""
    result: int = fcntl.ioctl(fd, request, argument, True)
    return result
