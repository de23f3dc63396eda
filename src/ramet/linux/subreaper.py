"""PR_SET_CHILD_SUBREAPER (prctl(2)): orphaned descendants become children of this process, not of init."""

from __future__ import annotations

import ctypes
import os

PR_SET_CHILD_SUBREAPER = 36
PR_GET_CHILD_SUBREAPER = 37

_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]
_libc.prctl.restype = ctypes.c_int


def set_child_subreaper(on: bool) -> None:
    """Orphans of the whole process, whichever thread asks; children do not inherit it.

    Raises:
        OSError: where a filter of system calls refuses it.
    """
    _checked(_libc.prctl(PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0))


def is_child_subreaper() -> bool:
    """Whether this process is one.

    Raises:
        OSError: where a filter of system calls refuses to tell.
    """
    found = ctypes.c_int()
    _checked(_libc.prctl(PR_GET_CHILD_SUBREAPER, ctypes.addressof(found), 0, 0, 0))
    return bool(found.value)


def _checked(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
