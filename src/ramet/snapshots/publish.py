"""Publish a snapshot: manifest, fsync, one rename; and derive a whole snapshot for a fork."""

from __future__ import annotations

import time
from pathlib import Path

from ramet.errors import host_errors
from ramet.model import InstanceRecord, Manifest, Method, SnapshotFile, SnapshotKind, VmmBuild
from ramet.paths import SnapshotPaths
from ramet.snapshots.capture import Captured
from ramet.store import atomic
from ramet.store.derive import ANY_METHOD, derive


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


def publish(work: Path, final: SnapshotPaths, manifest: Manifest) -> None:
    """Make ``work`` the snapshot ``final``: its files become durable and 0400, then it appears whole or not at all (H40, H48).

    Raises:
        HostError: if it could not be made durable; ``work`` is left for the caller to discard.
    """
    with host_errors(f"publish the snapshot {manifest.id}"):
        atomic.write_json(work / "manifest.json", manifest)
        atomic.publish_directory(work, final.dir, file_mode=0o400)


def derive_snapshot(source: SnapshotPaths, manifest: Manifest, work: Path, *, fork: InstanceRecord) -> Manifest:
    """Fill ``work`` with a fork's own inodes for every file of ``source``; returns the fork's manifest, not yet published.

    Raises:
        HostError: for errors of the host.
    """
    into = SnapshotPaths(dir=work)
    memory = derive(source.memory, into.memory, allow=ANY_METHOD)
    disk = derive(source.disk, into.disk, allow=ANY_METHOD)
    vmstate = derive(source.vmstate, into.vmstate, allow=ANY_METHOD)
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
        memory=SnapshotFile(size_bytes=manifest.memory.size_bytes, method=memory),
        vmstate=SnapshotFile(size_bytes=manifest.vmstate.size_bytes, method=vmstate, sha256=manifest.vmstate.sha256),
        disk=SnapshotFile(size_bytes=manifest.disk.size_bytes, method=disk),
    )
