"""Records, builds and published snapshots for tests: small ones, with no VM behind them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ramet.model import (
    MIB,
    Accelerator,
    Hypervisor,
    InstanceRecord,
    Manifest,
    SnapshotFile,
    SnapshotKind,
    State,
    VmmBuild,
)
from ramet.paths import SnapshotPaths
from ramet.snapshots.publish import add_sums, publish

SNAPSHOT, INSTANCE = "0123456789ab", "ba9876543210"
BUILD = VmmBuild(
    hypervisor=Hypervisor.QEMU,
    version="Debian 1:7.2+dfsg-7",
    accelerator=Accelerator.TCG,
    machine="microvm",
    cpu_model="max,erms=off,fsrm=off",
    devices="d1ge57",
)


def record(**changes: Any) -> InstanceRecord:
    """A running instance."""
    fields: dict[str, Any] = {
        "id": INSTANCE,
        "name": "web",
        "state": State.RUNNING,
        "created_at_unix_s": 1.5,
        "hypervisor": Hypervisor.QEMU,
        "image": "1mage",
        "memory_mib": 1,
        "cpus": 2,
        "disk_bytes": 3 * 4096,
        "machine_id": "f" * 32,
        "vmm_build": BUILD,
    }
    return InstanceRecord(**(fields | changes))


def fill(work: Path) -> Manifest:
    """Put memory (1 MiB, mostly hole), device state and disk into ``work``; returns the manifest that fits them."""
    work.mkdir(parents=True, exist_ok=True)
    files = SnapshotPaths(dir=work)
    with files.memory.open("wb") as stream:
        stream.truncate(MIB)
        stream.seek(5 * 4096)
        stream.write(b"guest memory")
    state = bytes(range(256)) * 40
    files.vmstate.write_bytes(state)
    files.disk.write_bytes(b"disk" * 3 * 1024)
    manifest = Manifest(
        id=SNAPSHOT,
        kind=SnapshotKind.FULL,
        created_at_unix_s=2.5,
        instance_id=INSTANCE,
        instance_name="web",
        parent=None,
        image="1mage",
        memory_mib=1,
        cpus=2,
        vmm_build=BUILD,
        vmstate_id=SNAPSHOT,
        memory=SnapshotFile(size_bytes=MIB, written_bytes=4096),
        vmstate=SnapshotFile(size_bytes=len(state), written_bytes=len(state), sha256=hashlib.sha256(state).hexdigest()),
        disk=SnapshotFile(size_bytes=3 * 4096),
    )
    return add_sums(files, manifest, base=None, dirty=None)


def published(directory: Path) -> tuple[SnapshotPaths, Manifest]:
    """A published snapshot under ``directory``."""
    manifest = fill(directory / "work")
    final = SnapshotPaths(dir=directory / manifest.id)
    publish(directory / "work", final, manifest)
    return final, manifest
