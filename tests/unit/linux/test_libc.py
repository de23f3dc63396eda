"""Calls of the C library: what fails is an OSError, as in ``os``."""

from __future__ import annotations

import errno
import os

import pytest

from ramet.linux import libc

SYS_GETPID = 39
"""Of x86-64."""
NO_SUCH_CALL = 100_000


def test_a_result_is_returned() -> None:
    assert libc.syscall(SYS_GETPID) == os.getpid()


def test_what_fails_is_an_error_of_its_errno() -> None:
    with pytest.raises(OSError, match=r"^\[Errno 38\] Function not implemented$") as caught:
        libc.syscall(NO_SUCH_CALL)
    assert caught.value.errno == errno.ENOSYS
    with pytest.raises(OSError, match=r"^\[Errno 22\] a thing: Invalid argument$"):
        libc.prctl(NO_SUCH_CALL, what="a thing")
