"""Publish a snapshot: its sums, manifest, fsync, one rename; and derive a whole snapshot for a fork."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ramet.errors import CorruptError, HostError, NotFoundError, RametError, host_errors
from ramet.linux.extents import changed_since
from ramet.model import InstanceRecord, Manifest, Method, SnapshotFile, SnapshotKind, VmmBuild
from ramet.paths import SnapshotPaths
from ramet.signals import signals_held
from ramet.snapshots import manifest as manifests
from ramet.snapshots import sums
from ramet.snapshots.capture import Captured
from ramet.store import atomic
from ramet.store.derive import ANY_METHOD, derive
from ramet.threads import as_they_end

log = logging.getLogger(__name__)


def describe(
    snapshot_id: str,
    record: InstanceRecord,
    build: VmmBuild,
    captured: Captured,
    *,
    kind: SnapshotKind,
    parent: str | None,
) -> Manifest:
    """The manifest of a capture of ``record``'s VM."""
    return Manifest(
        id=snapshot_id,
        kind=kind,
        created_at_unix_s=time.time(),
        instance_id=record.id,
        instance_name=record.name,
        parent=parent,
        image=record.image,
        memory_mib=record.memory_mib,
        cpus=record.cpus,
        vmm_build=build,
        vmstate_id=snapshot_id,
        memory=captured.memory,
        vmstate=captured.vmstate,
        disk=captured.disk,
    )


def add_sums(
    files: SnapshotPaths, manifest: Manifest, *, base: SnapshotPaths | None, dirty: Sequence[sums.Region] | None
) -> Manifest:
    """Sum memory and disk up, and return the manifest with their roots. What is unchanged since ``base``, a published snapshot,
    is not read: of memory all but ``dirty``; of the disk, and of memory without it, what lies in the same blocks.

    Both files are made durable meanwhile: the disk is busy, and the CPU is not. After Ctrl-C an fsync may be at work yet, which
    nothing interrupts: it is not waited for, so that what is to be undone can be. Nothing is written any more.

    Raises:
        HostError: for errors of the host.
    """
    stop = threading.Event()
    pool = ThreadPoolExecutor(4, thread_name_prefix="sum")
    summing: list[Future[str]] = []
    with host_errors(f"sum up the snapshot {manifest.id}"):
        try:
            memory_base, disk_base = _summed_bases(base)
            with signals_held():  # a thread that is half begun is nobody's
                summing.append(pool.submit(_sum_up, (files.memory, files.memory_sums), memory_base, dirty, stop))
                summing.append(pool.submit(_sum_up, (files.disk, files.disk_sums), disk_base, None, stop))
                durable = [pool.submit(_make_durable, path) for path in (files.memory, files.disk)]
            begun: list[Future[Any]] = [*summing, *durable]
            for one in as_they_end(begun):
                one.result()  # of the first that fails: not what the others say when they are told to stop
            roots = [one.result() for one in summing]
        except BaseException as err:
            stop.set()
            with signals_held():
                wait(summing)
                pool.shutdown(wait=False)
            if isinstance(err, Exception):
                pool.shutdown()  # until what is being made durable is; Ctrl-C waits for no disk
            raise
        pool.shutdown()
    replace = msgspec.structs.replace
    return replace(manifest, memory=replace(manifest.memory, root=roots[0]), disk=replace(manifest.disk, root=roots[1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Base:
    """A published file with sums."""

    content: Path
    sums: Path
    root: str | None


def _summed_bases(base: SnapshotPaths | None) -> tuple[_Base | None, _Base | None]:
    """Memory and disk of a snapshot, as what others begin from; None if it cannot be believed."""
    if base is None:
        return None, None
    try:
        manifest = manifests.load(base)
    except (CorruptError, NotFoundError, HostError) as err:
        log.warning("the sums of its base are not used: %s", err.message)
        return None, None
    return (
        _Base(content=base.memory, sums=base.memory_sums, root=manifest.memory.root),
        _Base(content=base.disk, sums=base.disk_sums, root=manifest.disk.root),
    )


def _make_durable(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _sum_up(
    mine: tuple[Path, Path],
    base: _Base | None,
    changed: Sequence[sums.Region] | None,
    stop: threading.Event | None,
) -> str:
    """Sum up a file, given as it and its sum file; returns the root. Sums of a base that are damaged are no use: all is read."""
    content, into = mine
    with ExitStack() as stack:
        content_fd = stack.enter_context(content.open("rb")).fileno()
        if base is not None:
            if changed is None:
                with base.content.open("rb") as stream:
                    changed = _differing(content_fd, stream.fileno())
            if changed is not None:
                try:
                    derive(base.sums, into, allow=ANY_METHOD)
                    with into.open("r+b", buffering=0) as stream:
                        return sums.update(content_fd, stream.fileno(), changed, base_root=base.root, stop=stop)
                except (CorruptError, HostError, OSError) as err:  # what is no fault of theirs will come again
                    log.warning("%s are of no use (%s); all of %s is read", base.sums, _one_line(err), content.name)
                into.unlink(missing_ok=True)
        into.touch(mode=0o600, exist_ok=False)
        sums_fd = stack.enter_context(into.open("r+b", buffering=0)).fileno()
        return sums.update(content_fd, sums_fd, None, stop=stop)


def _one_line(err: Exception) -> str:
    """What it says, without what to do about it."""
    return err.message if isinstance(err, RametError) else str(err)


def _differing(fd: int, base_fd: int) -> Sequence[sums.Region] | None:
    """None if nobody can tell."""
    if os.fstat(fd).st_size != os.fstat(base_fd).st_size:
        return None
    try:
        return changed_since(fd, base_fd)
    except OSError as err:
        if err.errno in (errno.EOPNOTSUPP, errno.ENOTTY):
            return None
        raise


def publish(work: Path, final: SnapshotPaths, manifest: Manifest) -> None:
    """Make ``work`` the snapshot ``final``: its files become durable and 0400, then it appears whole or not at all (H40, H48).

    Raises:
        HostError: if it could not be made durable; ``work`` is left for the caller to discard.
    """
    with host_errors(f"publish the snapshot {manifest.id}"):
        manifests.write(SnapshotPaths(dir=work).manifest, manifest)
        atomic.publish_directory(work, final.dir)


def derive_snapshot(source: SnapshotPaths, manifest: Manifest, work: Path, *, fork: InstanceRecord) -> Manifest:
    """Fill ``work`` with a fork's own inodes for every file of ``source``; returns the fork's manifest, not yet published.

    Raises:
        HostError: for errors of the host.
    """
    into = SnapshotPaths(dir=work)
    memory = derive(source.memory, into.memory, allow=ANY_METHOD)
    disk = derive(source.disk, into.disk, allow=ANY_METHOD)
    vmstate = derive(source.vmstate, into.vmstate, allow=ANY_METHOD)
    for sum_file, mine, content in (
        (source.memory_sums, into.memory_sums, into.memory),
        (source.disk_sums, into.disk_sums, into.disk),
    ):
        if sum_file.exists():
            derive(sum_file, mine, allow=ANY_METHOD)
        else:  # the manifest keeps the root: if this is not it, a check will say so
            log.warning("snapshot %s has lost %s: it is made anew for its fork", manifest.id, sum_file.name)
            with host_errors(f"sum up {content}"):
                _sum_up((content, mine), None, None, None)
    return adopt(manifest, fork=fork, memory=memory, disk=disk, vmstate=vmstate)


def adopt(
    manifest: Manifest, *, fork: InstanceRecord, memory: Method | None, disk: Method | None, vmstate: Method | None
) -> Manifest:
    """The manifest of a fork's own snapshot, whose files come from ``manifest``'s."""
    if fork.snapshot is None:
        raise ValueError("a fork that sleeps needs a snapshot id")
    return Manifest(
        id=fork.snapshot,
        kind=SnapshotKind.FORK,
        created_at_unix_s=time.time(),
        instance_id=fork.id,
        instance_name=fork.name,
        parent=manifest.id,
        image=manifest.image,
        memory_mib=manifest.memory_mib,
        cpus=manifest.cpus,
        vmm_build=manifest.vmm_build,
        vmstate_id=manifest.vmstate_id,
        memory=SnapshotFile(size_bytes=manifest.memory.size_bytes, method=memory, root=manifest.memory.root),
        vmstate=SnapshotFile(size_bytes=manifest.vmstate.size_bytes, method=vmstate, sha256=manifest.vmstate.sha256),
        disk=SnapshotFile(size_bytes=manifest.disk.size_bytes, method=disk, root=manifest.disk.root),
    )
