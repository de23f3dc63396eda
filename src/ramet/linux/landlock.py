"""Landlock (landlock(7), Documentation/userspace-api/landlock.rst): a thread gives up, for itself and for whatever it starts, all
access to files that it does not name.
"""

from __future__ import annotations

import os
import stat
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ramet.linux.libc import syscall

SYS_LANDLOCK_CREATE_RULESET: Final = 444
SYS_LANDLOCK_ADD_RULE: Final = 445
SYS_LANDLOCK_RESTRICT_SELF: Final = 446
LANDLOCK_CREATE_RULESET_VERSION: Final = 1
LANDLOCK_RULE_PATH_BENEATH: Final = 1
WHAT: Final = "Landlock"
"""An error of these begins with it."""

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = (1 << bit for bit in range(4))
REMOVE_FILE, MAKE_REG, MAKE_SOCK = 1 << 5, 1 << 8, 1 << 9
TRUNCATE, IOCTL_DEV = 1 << 14, 1 << 15
ALL_OF_ABI_1: Final = (1 << 13) - 1
READS: Final = EXECUTE | READ_FILE | READ_DIR
LOADS: Final = READ_FILE
USES: Final = READ_FILE | WRITE_FILE | IOCTL_DEV
WRITES: Final = READ_FILE | READ_DIR | WRITE_FILE | TRUNCATE | REMOVE_FILE | MAKE_REG | MAKE_SOCK
FOR_FILES: Final = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
"""The rights that make sense for a file and not for a directory alone; the kernel refuses others (EINVAL)."""

TRUNCATE_SINCE, NET_SINCE, IOCTL_SINCE, SCOPE_SINCE = 3, 4, 5, 6
"""The ABI versions that brought them. Links and renames into another directory (REFER) are refused by all, handled or not."""
BOTH_TCP: Final = 0b11
BOTH_SCOPES: Final = 0b11
"""Abstract unix sockets, and signals, to processes outside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What may be done, in and below each path. Everything else is refused.

    Not handled by any version: stat(2), chmod(2), chown(2), utimensat(2), setxattr(2), flock(2), chdir(2), access(2), and
    whatever is done with descriptors that are open already.
    """

    read: tuple[Path, ...] = ()
    """Read and executed. One that cannot be looked at is left out, as one that does not exist is."""
    load: tuple[Path, ...] = ()
    """Read, not executed."""
    use: tuple[Path, ...] = ()
    """Devices: read, written, asked with ioctl(2)."""
    write: tuple[Path, ...] = ()
    """Read, written, made, removed and renamed within a directory; not executed."""


def abi_version() -> int:
    """The highest version that the kernel supports.

    Raises:
        OSError: ENOSYS where it is not built in, EOPNOTSUPP where it is not enabled at boot.
    """
    return syscall(SYS_LANDLOCK_CREATE_RULESET, None, 0, LANDLOCK_CREATE_RULESET_VERSION, what=WHAT)


def restrict_this_thread(rules: Rules) -> None:
    """Put this thread, and whatever it starts from now on, under ``rules``, for ever. It must have no_new_privs.

    Raises:
        OSError: if the kernel refuses; nothing is restricted then.
    """
    version = abi_version()
    handled = ALL_OF_ABI_1
    for right, since in ((TRUNCATE, TRUNCATE_SINCE), (IOCTL_DEV, IOCTL_SINCE)):
        handled |= right if version >= since else 0
    attributes = struct.pack(
        "=QQQ", handled, BOTH_TCP if version >= NET_SINCE else 0, BOTH_SCOPES if version >= SCOPE_SINCE else 0
    )
    fields = 3 if version >= SCOPE_SINCE else 2 if version >= NET_SINCE else 1  # an older kernel knows no more of them
    ruleset = syscall(SYS_LANDLOCK_CREATE_RULESET, attributes, 8 * fields, 0, what=WHAT)
    try:
        for path in rules.read:
            with suppress(OSError):
                _allow(ruleset, path, READS & handled)
        for paths, rights in ((rules.load, LOADS), (rules.use, USES), (rules.write, WRITES)):
            for path in paths:
                with suppress(FileNotFoundError):
                    _allow(ruleset, path, rights & handled)
        syscall(SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0, 0, what=WHAT)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, rights: int) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= FOR_FILES
        syscall(SYS_LANDLOCK_ADD_RULE, ruleset, LANDLOCK_RULE_PATH_BENEATH, struct.pack("=Qi", rights, fd), what=WHAT)
    finally:
        os.close(fd)
