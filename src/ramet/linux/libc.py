"""The C library's functions that Python lacks, prctl(2) and syscall(2) among them: they raise OSError as those of ``os`` do."""

from __future__ import annotations

import ctypes
import os
from typing import Final

LIBC: Final = ctypes.CDLL(None, use_errno=True)
"""A function that is called here gets its ``argtypes`` once, in the module that calls it, and is called through ``checked``."""
LIBC.prctl.argtypes = [ctypes.c_int, *([ctypes.c_ulong] * 4)]
LIBC.prctl.restype = ctypes.c_int
LIBC.syscall.argtypes = [ctypes.c_long, *([ctypes.c_void_p] * 6)]
LIBC.syscall.restype = ctypes.c_long


def checked(result: int, *, what: str | None = None) -> int:
    """The result of a call that was just made through ``LIBC``.

    Raises:
        OSError: if it is below 0, from errno; the text begins with ``what`` was tried.
    """
    if result < 0:
        number = ctypes.get_errno()
        text = os.strerror(number)
        raise OSError(number, f"{what}: {text}" if what else text)
    return result


def prctl(option: int, argument: int = 0, *, what: str | None = None) -> int:
    """prctl(2), its other arguments 0.

    Raises:
        OSError: if the kernel refuses.
    """
    return checked(LIBC.prctl(option, argument, 0, 0, 0), what=what)


def syscall(number: int, *arguments: int | bytes | None, what: str | None = None) -> int:
    """syscall(2): up to six arguments, the rest 0. Bytes are read by the kernel, which writes into none.

    Raises:
        OSError: if the kernel refuses.
    """
    return checked(LIBC.syscall(number, *arguments, *([0] * (6 - len(arguments)))), what=what)
