"""Landlock (landlock(7)): which version of its interface the kernel has."""

from __future__ import annotations

import ctypes
import os

SYS_LANDLOCK_CREATE_RULESET = 444
LANDLOCK_CREATE_RULESET_VERSION = 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.argtypes = [ctypes.c_long, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32]
_libc.syscall.restype = ctypes.c_long


def abi_version() -> int:
    """The highest version that the kernel supports.

    Raises:
        OSError: ENOSYS where it is not built in, EOPNOTSUPP where it is not enabled at boot.
    """
    version = _libc.syscall(SYS_LANDLOCK_CREATE_RULESET, None, 0, LANDLOCK_CREATE_RULESET_VERSION)
    if version < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(version)
