"""Locks: OFD locks on files of their own.

A lock file is created on first use and removed by its last exclusive holder. Whoever gets a lock checks that the path still names
the file that it locked; if not, it was removed in between and the attempt begins again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ramet.errors import LockedError, host_errors
from ramet.linux import ofdlock
from ramet.process import wait_until

DEFAULT_TIMEOUT_S = 60.0


@contextmanager
def locked(
    locks_dir: Path, key: str, *, exclusive: bool = True, timeout_s: float = DEFAULT_TIMEOUT_S
) -> Iterator[None]:
    """Hold the lock called ``key`` for the block.

    Raises:
        LockedError: if another process holds it for ``timeout_s`` seconds (0: do not wait).
    """
    path = locks_dir / key
    with host_errors(f"lock {path}"):
        try:
            fd = wait_until(lambda: _attempt(path, exclusive=exclusive), timeout_s, what=key)
        except TimeoutError as err:
            raise LockedError(
                f"Another command is at work on {key} (it holds {path}).", hint="Wait for it to end, then try again."
            ) from err
    try:
        yield
    finally:
        if exclusive:
            path.unlink(missing_ok=True)
        os.close(fd)


def _attempt(path: Path, *, exclusive: bool) -> int | None:
    """A descriptor that holds the lock, or None if somebody else does."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            free = ofdlock.try_lock(fd, exclusive=exclusive)
            if free and _is_same_file(fd, path):
                kept, fd = fd, -1
                return kept
            if not free:
                return None
        finally:
            if fd >= 0:
                os.close(fd)


def _is_same_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False
