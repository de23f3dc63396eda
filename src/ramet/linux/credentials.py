"""Users and groups of one thread (credentials(7)): the kernel keeps them per thread, and only the C library makes all threads
change theirs together.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ramet.linux.libc import prctl, syscall

SYS_SETGROUPS, SYS_SETRESUID, SYS_SETRESGID = 116, 117, 119
"""Of x86-64."""
PR_GET_DUMPABLE, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 3, 4, 38
UID_MAP: Final = Path("/proc/self/uid_map")

_one_at_a_time = threading.Lock()


def ids_exist(first: int, last: int) -> bool:
    """Whether this user namespace knows all user ids from ``first`` to ``last`` (user_namespaces(7))."""
    for line in UID_MAP.read_text().splitlines():
        inside, _, count = map(int, line.split())
        if inside <= first and last < inside + count:
            return True
    return False


def become(user: int, groups: Sequence[int]) -> None:
    """Make this thread, and whatever it starts, run as ``user``, with a group of that number and ``groups`` besides. It has no
    capability any more and cannot go back.

    Raises:
        OSError: if the kernel refuses.
    """
    packed = struct.pack(f"={len(groups)}I", *groups)
    for number, *arguments in (
        (SYS_SETGROUPS, len(groups), packed),
        (SYS_SETRESGID, user, user, user),
        (SYS_SETRESUID, user, user, user),
    ):
        syscall(number, *arguments, what=f"become user {user}")


def forbid_new_privileges() -> None:
    """No program that this thread starts has more rights than it has, set-user-ID or not (prctl(2), PR_SET_NO_NEW_PRIVS).

    Raises:
        OSError: if the kernel refuses.
    """
    prctl(PR_SET_NO_NEW_PRIVS, 1, what="no_new_privs")


@contextmanager
def dumpable_kept() -> Iterator[None]:
    """A thread that changes its user makes the whole process one that cannot be traced (prctl(2), PR_SET_DUMPABLE): put that back
    when the block, and the thread, have ended. One at a time: as long as any thread has another user, that user could trace us.
    """
    with _one_at_a_time:
        before = prctl(PR_GET_DUMPABLE)
        try:
            yield
        finally:
            if before == 1:
                prctl(PR_SET_DUMPABLE, 1)


def wait_for_end_of_thread(tid: int) -> None:
    """``Thread.join`` returns a moment before the kernel has ended it."""
    while Path(f"/proc/self/task/{tid}").exists():
        time.sleep(0.0001)
