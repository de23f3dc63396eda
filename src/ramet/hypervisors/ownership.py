"""What belongs to a VMM that runs as a user of its own: its instance's live files, and what it opens of what is published.

The store stays closed to that user: it reaches its files from its working directory, and the rest through descriptors.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ramet.errors import host_errors
from ramet.hypervisors.base import LaunchSpec
from ramet.signals import signals_held

PASSABLE: Final = 0o711
"""An instance's directory: its VMM goes through it, and sees or changes nothing there."""
FOR_ALL: Final = 0o444
"""An image's files: any instance may boot them, and none owns them. Only who gets into the store can read them."""
PUBLISHED: Final = 0o400
SHARED: Final = 0o440
"""Memory and device state that forks share: their group is that of the instance that they were taken of."""
PUBLISHED_AND_WRITTEN: Final = 0o600


def hand_over(spec: LaunchSpec, user: int) -> None:
    """Make live files, logs and the place of sockets ``user``'s.

    What is no file with one name was not made by us: it is left to whom it belongs, and the VMM then cannot open it.

    Raises:
        OSError: if the file system refuses.
    """
    spec.work_dir.parent.chmod(PASSABLE)
    for directory in (spec.work_dir, spec.run_dir, spec.vmm_log.parent):
        os.chown(directory, user, user, follow_symlinks=False)
    for directory in (spec.work_dir, spec.vmm_log.parent):
        for path in directory.iterdir():
            if stat.S_ISREG(path.lstat().st_mode):
                _give(path, user, user, only_if_single=True)


@contextmanager
def lent(spec: LaunchSpec, user: int, group: int, *, memory_is_written: bool) -> Iterator[None]:
    """Let ``user`` open, during the block, what the VMM needs of its snapshot, and what its image holds. Afterwards the
    snapshot's files are ours again: what was opened stays open, and its modes are not the VMM's to change.

    What forks share stays ours: ``user`` is in ``group``, which may read it.

    Where the memory file of its own snapshot is opened for writing (QEMU before 8.2, without reflinks), it can be written for as
    long as the block takes.

    Raises:
        HostError: if the file system refuses.
    """
    own_or_sealed = spec.work_dir in spec.memory.parents or spec.memory_is_sealed
    snapshot = [path for path in (spec.vmstate, None if own_or_sealed else spec.memory) if path is not None]
    if spec.snapshot_of is not None:
        with host_errors(f"let the VMM of {spec.name!r} read what it shares"):
            share(snapshot, group)
    snapshot = [path for path in snapshot if not _is_shared(path, group)]
    written = [path for path in snapshot if path == spec.memory and memory_is_written]
    try:
        with host_errors(f"let the VMM of {spec.name!r} open its snapshot"), signals_held():
            for path in (spec.boot.kernel, spec.boot.initrd) if spec.boot is not None else ():
                if stat.S_IMODE(path.stat().st_mode) & FOR_ALL != FOR_ALL:
                    path.chmod(FOR_ALL)
            for path in snapshot:
                _give(path, user, user)
            for path in written:
                path.chmod(PUBLISHED_AND_WRITTEN)
        yield
    finally:
        with signals_held(), host_errors(f"take back the snapshot of {spec.name!r}"):
            for path in written:
                path.chmod(PUBLISHED)
            for path in snapshot:
                _give(path, os.geteuid(), os.getegid())


def share(files: Iterable[Path], group: int) -> None:
    """Let several VMMs at once, whose users are in ``group``, read published files: they are no VMM's own for a moment.

    Raises:
        OSError: if the file system refuses.
    """
    for path in files:
        if not _is_shared(path, group):
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.fchown(fd, os.geteuid(), group)
                os.fchmod(fd, SHARED)
            finally:
                os.close(fd)


def _is_shared(path: Path, group: int) -> bool:
    found = path.lstat()
    return found.st_gid == group and stat.S_IMODE(found.st_mode) == SHARED


def give_like(path: Path, directory: Path) -> None:
    """Make a file that was just made in a live VMM's directory its user's.

    Raises:
        OSError: if the file system refuses.
    """
    whose = directory.stat()
    _give(path, whose.st_uid, whose.st_gid, only_if_single=True)


def _give(path: Path, user: int, group: int, *, only_if_single: bool = False) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if found.st_uid != user and (found.st_nlink == 1 or not only_if_single):
            os.fchown(fd, user, group)
    finally:
        os.close(fd)
