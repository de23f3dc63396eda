"""Advice about another process's memory (process_madvise(2), Linux 5.10)."""

from __future__ import annotations

import ctypes

from ramet.linux.libc import syscall

SYS_PROCESS_MADVISE = 440
MADV_PAGEOUT = 21


class IoVec(ctypes.Structure):
    """struct iovec, with addresses of the other process."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def page_out(pidfd: int, start: int, end: int) -> None:
    """Ask the kernel to write out, or to drop, the pages from ``start`` to ``end``; it may leave any of them where they are.

    Raises:
        OSError: EPERM without the right to trace it and CAP_SYS_NICE; EINVAL for locked memory; ENOSYS before Linux 5.10.
    """
    span = IoVec(start, end - start)
    syscall(SYS_PROCESS_MADVISE, pidfd, ctypes.addressof(span), 1, MADV_PAGEOUT, 0)
