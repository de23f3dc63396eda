"""What runs of the verifier have left that were killed: the next run takes it away."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ramet.errors import RametError, host_errors
from ramet.instances.host import Host
from ramet.linux import ofdlock

KEPT = "kept-"
"""Before the tag of a run whose instances were asked to be kept."""
_LOCK = re.compile(r"verify-([0-9a-f]{6})")
"""What the lock of a run is called: made before anything has its tag, and gone after all that has."""


@contextmanager
def at_work(host: Host, tag: str) -> Iterator[None]:
    """Hold the lock of the run ``tag`` for the block: as long as it is held, what has its tag is not taken away. If the block
    fails, the next run looks for what it has left.

    Raises:
        HostError: if it cannot be made.
    """
    path = _lock(host, tag)
    with host_errors(f"lock {path}"):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        ofdlock.try_lock(fd)
    try:
        yield
        path.unlink(missing_ok=True)
    finally:
        os.close(fd)


def remove(host: Host, say: Callable[[str], None]) -> None:
    """Remove the instances and named snapshots of runs that nobody is at any more.

    Raises:
        RametError: if one cannot be removed; it is tried again by the next run.
    """
    tags = [found[1] for path in (host.home / "locks").iterdir() if (found := _LOCK.fullmatch(path.name))]
    for tag in tags:
        if _is_at_work(_lock(host, tag)):
            continue
        named = [name for snapshot in host.snapshots() for name in snapshot.names]
        instances = [info.name for info in host.list()]
        say(f"removing what a run that was killed has left (verify-{tag})")
        mine = f"verify-{tag}-"
        for source in [one.source for one in host.pools()]:
            if source.startswith(mine):
                with _unless_gone(host, source):
                    host.pool(source, size=0)
        for name in instances:
            if name.startswith(mine):
                with _unless_gone(host, name):
                    host.remove(name, force=True)
        for name in named:
            if name.startswith(mine):
                with _unless_gone(host, name):
                    host.snapshot_remove(name)
        for path in host.home.glob(f"{mine}*"):  # what a sabotage has put in the place of a VMM
            path.unlink(missing_ok=True)
        _lock(host, tag).unlink(missing_ok=True)


@contextmanager
def _unless_gone(host: Host, name: str) -> Iterator[None]:
    """Another run may be at the same."""
    try:
        yield
    except RametError:
        if host.exists(name) or any(name in snapshot.names for snapshot in host.snapshots()):
            raise


def _lock(host: Host, tag: str) -> Path:
    return host.home / "locks" / f"verify-{tag}"


def _is_at_work(lock: Path) -> bool:
    try:
        fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not ofdlock.try_lock(fd)
    finally:
        os.close(fd)
