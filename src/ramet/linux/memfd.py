"""Sealed files in RAM (memfd_create(2), fcntl(2) F_ADD_SEALS): nobody can change one, whatever it was opened for."""

from __future__ import annotations

import errno
import fcntl
import os
from typing import Final

MFD_NOEXEC_SEAL: Final = 0x0008
"""Nobody can make it executable (Linux 6.3); some hosts insist on that (vm.memfd_noexec). It allows sealing too."""
F_ADD_SEALS, F_GET_SEALS = 1033, 1034
F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE = 0x1, 0x2, 0x4, 0x8
SEALS: Final = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE
"""No write by any means, no shared writable mapping, no hole, no other size, and no seal ever goes."""


def create(name: str) -> int:
    """An empty file in RAM that has no name in any file system; ``name`` is for people, in /proc/PID/maps. It can be sealed.

    Raises:
        OSError: ENOSYS on a kernel that has none; EACCES where the host forbids it.
    """
    try:
        return os.memfd_create(name, os.MFD_CLOEXEC | MFD_NOEXEC_SEAL)
    except OSError as err:
        if err.errno != errno.EINVAL:
            raise
    return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def seal(fd: int) -> None:
    """Let nobody change it any more.

    Raises:
        OSError: EBUSY while somebody maps it shared and writable; EPERM, EINVAL for what cannot be sealed.
    """
    fcntl.fcntl(fd, F_ADD_SEALS, SEALS)


def is_sealed(fd: int) -> bool:
    """Whether nobody can change the file: ``seal`` was called. False for what is no file in RAM.

    Raises:
        OSError: EBADF for a descriptor that is not open.
    """
    try:
        return fcntl.fcntl(fd, F_GET_SEALS) & SEALS == SEALS
    except OSError as err:
        if err.errno != errno.EINVAL:
            raise
    return False


def why_not() -> str | None:
    """None if the kernel refuses writes to a file that we have sealed, by trying it; else why it cannot be had."""
    try:
        fd = create("ramet-probe")
    except OSError as err:
        return f"no memfd_create ({os.strerror(err.errno or 0)})"
    try:
        seal(fd)
        os.write(fd, b"x")
    except OSError as err:
        return None if err.errno == errno.EPERM and is_sealed(fd) else f"no seals on a memfd ({err.strerror})"
    finally:
        os.close(fd)
    return "a sealed memfd can be written here"
