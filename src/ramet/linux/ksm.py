"""Kernel same-page merging (Documentation/admin-guide/mm/ksm.rst): whether a process lets it, allowing and forbidding it."""

from __future__ import annotations

import errno
from pathlib import Path

from ramet.linux.libc import prctl

PR_SET_MEMORY_MERGE = 67
PR_GET_MEMORY_MERGE = 68


def is_wanted() -> bool:
    """Whether all of this process's memory may be merged, and that of what it starts: fork(2) keeps it, and so does execve(2)
    since Linux 6.7 (3c6f33b7273a, "mm/ksm: support fork/exec for prctl"). It is ``PR_SET_MEMORY_MERGE``, Linux 6.4; systemd's
    ``MemoryKSM=``. False where the kernel has nothing of that.

    Raises:
        OSError: if the kernel refuses to say.
    """
    try:
        return prctl(PR_GET_MEMORY_MERGE) == 1
    except OSError as err:
        if err.errno != errno.EINVAL:
            raise
        return False


def allow() -> None:
    """All memory of this process may be merged from now on, and that of what it starts, as far as ``is_wanted`` says.

    Raises:
        OSError: if the kernel refuses: EINVAL, where it has nothing of that.
    """
    prctl(PR_SET_MEMORY_MERGE, 1)


def forbid() -> None:
    """No page of this process, nor of what it starts, is merged from now on, unless one of them asks for it.

    Raises:
        OSError: if the kernel refuses: EINVAL, where it has nothing of that.
    """
    prctl(PR_SET_MEMORY_MERGE, 0)


def mergeable_bytes(pid: int) -> int:
    """What of a process's memory the kernel may merge with equal pages of others, whoever asked for it.

    Raises:
        OSError: if the process has ended, or is not ours to look at.
    """
    return mergeable_in(Path(f"/proc/{pid}/smaps").read_bytes())


def mergeable_in(smaps: bytes) -> int:
    """The same, in bytes, of what /proc/PID/smaps says: the sizes of the mappings with the flag ``mg`` (proc(5))."""
    found = size = 0
    for line in smaps.splitlines():
        if line.startswith(b"Size:"):
            size = int(line.split()[1]) * 1024
        elif line.startswith(b"VmFlags:") and b"mg" in line.split():
            found += size
    return found
