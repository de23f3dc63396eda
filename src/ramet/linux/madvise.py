"""Advice about another process's memory (process_madvise(2), Linux 5.10)."""

from __future__ import annotations

import ctypes
import os

SYS_PROCESS_MADVISE = 440
MADV_PAGEOUT = 21


class IoVec(ctypes.Structure):
    """struct iovec, with addresses of the other process."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.syscall.argtypes = (
    *(ctypes.c_long, ctypes.c_int, ctypes.POINTER(IoVec)),
    *(ctypes.c_size_t, ctypes.c_int, ctypes.c_uint),
)


def page_out(pidfd: int, start: int, end: int) -> None:
    """Ask the kernel to write out, or to drop, the pages from ``start`` to ``end``; it may leave any of them where they are.

    Raises:
        OSError: EPERM without the right to trace it and CAP_SYS_NICE; EINVAL for locked memory; ENOSYS before Linux 5.10.
    """
    if _libc.syscall(SYS_PROCESS_MADVISE, pidfd, IoVec(start, end - start), 1, MADV_PAGEOUT, 0) < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
