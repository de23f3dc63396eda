"""PR_SET_CHILD_SUBREAPER (prctl(2)): orphaned descendants become children of this process, not of init."""

from __future__ import annotations

import ctypes

from ramet.linux.libc import prctl

PR_SET_CHILD_SUBREAPER = 36
PR_GET_CHILD_SUBREAPER = 37


def set_child_subreaper(on: bool) -> None:
    """Orphans of the whole process, whichever thread asks; children do not inherit it.

    Raises:
        OSError: where a filter of system calls refuses it.
    """
    prctl(PR_SET_CHILD_SUBREAPER, int(on))


def is_child_subreaper() -> bool:
    """Whether this process is one.

    Raises:
        OSError: where a filter of system calls refuses to tell.
    """
    found = ctypes.c_int()
    prctl(PR_GET_CHILD_SUBREAPER, ctypes.addressof(found))
    return bool(found.value)
