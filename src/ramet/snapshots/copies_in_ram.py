"""Copies in RAM: a snapshot's memory as a sealed file, for VMMs that open what they map for writing (QEMU before 8.2).

It has no name: it lives as long as some VMM has it open, and another one gets it from there. A VMM is not trusted: what it has
open must be the very file that we made, and sealed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ramet.errors import CorruptError, host_errors
from ramet.linux import memfd, procfs
from ramet.linux.extents import map_data
from ramet.model import CopyInRam, VmmProcess
from ramet.paths import SnapshotPaths

log = logging.getLogger(__name__)
FOR_EVERY_VMM = 0o666
"""A VMM with a user of its own opens it for writing, which its seals make no use of; it is not its owner."""
NAME = "ramet-memory-"


@contextmanager
def made(snapshot: SnapshotPaths) -> Iterator[tuple[int, CopyInRam]]:
    """A new one, by a descriptor for the block. What the page cache has of the snapshot's file is no use any more: it is let go.

    Raises:
        HostError: if there is not enough memory, or the file cannot be read.
        CorruptError: if it is cut short meanwhile.
    """
    with host_errors(f"copy {snapshot.memory} into memory"), snapshot.memory.open("rb", buffering=0) as source:
        fd = memfd.create(f"{NAME}{snapshot.dir.name}")
        try:
            os.fchmod(fd, FOR_EVERY_VMM)
            before = os.fstat(source.fileno())
            os.ftruncate(fd, before.st_size)
            for start, end in map_data(source.fileno()):
                _copy(source.fileno(), fd, start, end)
            memfd.seal(fd)
            os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            found = os.fstat(fd)
        except BaseException:
            os.close(fd)
            raise
    try:
        yield (
            fd,
            CopyInRam(
                snapshot_id=snapshot.dir.name,
                dev=found.st_dev,
                ino=found.st_ino,
                file_ino=before.st_ino,
                file_mtime_ns=before.st_mtime_ns,
            ),
        )
    finally:
        os.close(fd)


def _copy(source_fd: int, fd: int, start: int, end: int) -> None:
    os.lseek(fd, start, os.SEEK_SET)
    while start < end:
        count = os.sendfile(fd, source_fd, start, end - start)
        if count == 0:
            raise CorruptError(f"The memory of a snapshot ended at byte {start} while it was read.")
        start += count


def opened(copy_in_ram: CopyInRam, vmm: VmmProcess, *, size_bytes: int) -> int | None:
    """A descriptor of our own of what a VMM has open, if that is the copy in RAM, whole and sealed; else None."""
    path = path_in(vmm, copy_in_ram)
    if path is None:
        return None
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # whatever it has put there since we looked
    except OSError:
        return None
    found = os.fstat(fd)
    is_ours = (found.st_dev, found.st_ino, found.st_uid) == (copy_in_ram.dev, copy_in_ram.ino, os.geteuid())
    if is_ours and found.st_size == size_bytes and memfd.is_sealed(fd):
        return fd
    os.close(fd)
    log.warning("process %d has something else than the copy in RAM of snapshot %s", vmm.pid, copy_in_ram.snapshot_id)
    return None


def is_unchanged(copy_in_ram: CopyInRam, memory: Path, *, size_bytes: int) -> bool:
    """Whether the published file is the one that was copied, not written since as far as its times tell."""
    try:
        found = memory.lstat()
    except OSError:
        return False
    then = (copy_in_ram.file_ino, copy_in_ram.file_mtime_ns, size_bytes)
    return (found.st_ino, found.st_mtime_ns, found.st_size) == then


def path_in(vmm: VmmProcess, copy_in_ram: CopyInRam) -> Path | None:
    """The copy in RAM by a VMM's descriptor of it; None if it has none (any more)."""
    try:
        opened_by_it = procfs.open_descriptors(vmm.pid)
    except OSError:
        return None  # it has ended
    for one in opened_by_it:
        if (one.dev, one.ino) == (copy_in_ram.dev, copy_in_ram.ino):
            return Path(f"/proc/{vmm.pid}/fd/{one.fd}")
    return None
