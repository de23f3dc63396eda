"""File leases (fcntl(2), F_SETLEASE): the kernel grants one for reading only on a file that nobody has open for writing."""

from __future__ import annotations

import errno
import fcntl


def nobody_writes(fd: int) -> bool:
    """Whether no descriptor anywhere, be it on its way from one process to another, can write to a file of ours. True, too, where
    the file system has no leases.

    Raises:
        OSError: EACCES for a file that is another user's.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as err:
        if err.errno == errno.EAGAIN:
            return False
        if err.errno in (errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP):
            return True
        raise
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True
