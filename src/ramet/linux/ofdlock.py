"""Open file description locks (fcntl(2)): they belong to the descriptor, not to the process, and go with its last copy."""

from __future__ import annotations

import errno
import fcntl
import struct

F_OFD_SETLK = 37
FLOCK = struct.Struct("=hhxxxxqqi4x")
"""struct flock: l_type, l_whence, l_start, l_len, l_pid (which must be 0)."""


def try_lock(fd: int, *, exclusive: bool = True) -> bool:
    """Take the lock if nobody else has it. An exclusive one needs a descriptor open for writing, a shared one for reading."""
    kind = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
    try:
        fcntl.fcntl(fd, F_OFD_SETLK, FLOCK.pack(kind, 0, 0, 0, 0))
    except OSError as err:
        if err.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True
