"""The files of a live instance, and what is left of them when its VMM is gone."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

from ramet.errors import VmmDiedError, host_errors
from ramet.linux import foreign
from ramet.model import InstanceRecord
from ramet.paths import InstancePaths, StorePaths
from ramet.snapshots import copies_in_ram
from ramet.store import atomic

log = logging.getLogger("ramet.instances")
NO_DISK = (errno.ENOENT, errno.EINVAL, errno.ENXIO, errno.ELOOP)
"""It has gone, or something else is there."""


def mapped_file(store: StorePaths, record: InstanceRecord) -> Path:
    """The file that the VMM maps: the copy in RAM of its snapshot, by the VMM's own descriptor; its own under ``work/``; or,
    where that is not needed, its snapshot's.

    Raises:
        VmmDiedError: if the VMM has no descriptor of the copy: it has ended.
    """
    if maps_copy_in_ram(record):
        assert record.copy_in_ram is not None
        found = copies_in_ram.path_in(record.vmm, record.copy_in_ram) if record.vmm is not None else None
        if found is None:
            raise VmmDiedError(f"The VMM of {record.name!r} does not have its memory open any more.")
        return found
    own = store.instance(record.id).memory
    if own.exists() or record.mapped_snapshot is None:
        return own
    return store.snapshot(record.mapped_snapshot).memory


def maps_copy_in_ram(record: InstanceRecord) -> bool:
    """Whether what the VMM maps is the copy in RAM of the snapshot that it woke from."""
    return record.copy_in_ram is not None and record.copy_in_ram.snapshot_id == record.mapped_snapshot


def clear(paths: InstancePaths, *, keep_disk: bool) -> None:
    """Remove what a VMM that is gone has left: sockets, its memory file and, unless it is the truth now, its disk."""
    with host_errors(f"clear {paths.work}"):
        for path in paths.run.iterdir():
            if path.suffix == ".sock":
                path.unlink(missing_ok=True)
        for path in paths.work.glob(".*.????????"):  # what a killed derive left
            path.unlink(missing_ok=True)
        paths.memory.unlink(missing_ok=True)
        paths.next_memory.unlink(missing_ok=True)
        paths.vmstate.unlink(missing_ok=True)
        if not keep_disk:
            paths.disk.unlink(missing_ok=True)


def sync_disk(paths: InstancePaths) -> None:
    """Have the live disk durable (fsync(2)); nobody writes to it any more. What a VMM has put in its place is no disk.

    Raises:
        HostError: if the host could not write it.
    """
    with host_errors(f"sync {paths.disk}"):
        try:
            fd = foreign.open_regular(paths.disk)
        except OSError as err:
            if err.errno not in NO_DISK:
                raise
            log.warning("%s is no disk any more: %s", paths.disk, err.strerror)
            return
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def set_aside_path(paths: InstancePaths) -> Path:
    """Where the live disk waits while a rollback may still fail."""
    return paths.work / "disk.before-rollback.raw"


def drop_set_aside_disk(paths: InstancePaths) -> None:
    """Delete the disk that a rollback had set aside: it has succeeded."""
    with host_errors(f"clean up {paths.work}"):
        set_aside_path(paths).unlink(missing_ok=True)


def put_back_set_aside_disk(paths: InstancePaths) -> None:
    """Put the live disk back that an unfinished rollback had set aside."""
    aside = set_aside_path(paths)
    if aside.exists():
        with host_errors(f"put {paths.disk} back"):
            aside.rename(paths.disk)
            atomic.fsync_directory(paths.work)
