"""Every path of the store, in one place.

$RAMET_HOME/
  images/<digest>/   tags/<name>
  snapshots/<id>/    manifest.json vmstate memory disk.raw      0400, published by one rename
  instances/<id>/    instance.json  work/  run/  logs/
  names/instances/<name>   names/snapshots/<name>               hold an id, created with link(2)
  locks/             files that carry OFD locks
  tmp/<id>/          work in progress, swept at start-up
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

AGENT_PORTS = 8
CONSOLE_SOCKET = "console.sock"
VSOCK_SOCKET = "vsock.sock"
"""Where Firecracker takes connections to its guest's vsock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotPaths:
    """The files of a snapshot, published or in the making."""

    dir: Path

    @property
    def manifest(self) -> Path:
        return self.dir / "manifest.json"

    @property
    def vmstate(self) -> Path:
        return self.dir / "vmstate"

    @property
    def memory(self) -> Path:
        return self.dir / "memory"

    @property
    def disk(self) -> Path:
        return self.dir / "disk.raw"


@dataclass(frozen=True, slots=True, kw_only=True)
class InstancePaths:
    """``work/`` holds the live disk, memory and device state, ``run/`` sockets and pid file, ``logs/`` the VMM's words."""

    dir: Path

    @property
    def record(self) -> Path:
        return self.dir / "instance.json"

    @property
    def work(self) -> Path:
        return self.dir / "work"

    @property
    def run(self) -> Path:
        return self.dir / "run"

    @property
    def logs(self) -> Path:
        return self.dir / "logs"

    @property
    def disk(self) -> Path:
        return self.work / "disk.raw"

    @property
    def memory(self) -> Path:
        return self.work / "memory"

    @property
    def next_memory(self) -> Path:
        """What a VMM that saves its memory itself writes, until it is published."""
        return self.work / "memory.next"

    @property
    def vmstate(self) -> Path:
        return self.work / "vmstate"

    @property
    def console_log(self) -> Path:
        return self.logs / "console.log"

    @property
    def vmm_log(self) -> Path:
        return self.logs / "vmm.log"


@dataclass(frozen=True, slots=True, kw_only=True)
class StorePaths:
    """The store; its tree is drawn above."""

    home: Path

    @property
    def images(self) -> Path:
        return self.home / "images"

    @property
    def snapshots(self) -> Path:
        return self.home / "snapshots"

    @property
    def instances(self) -> Path:
        return self.home / "instances"

    @property
    def instance_names(self) -> Path:
        return self.home / "names" / "instances"

    @property
    def snapshot_names(self) -> Path:
        return self.home / "names" / "snapshots"

    @property
    def locks(self) -> Path:
        return self.home / "locks"

    @property
    def tmp(self) -> Path:
        return self.home / "tmp"

    def snapshot(self, snapshot_id: str) -> SnapshotPaths:
        return SnapshotPaths(dir=self.snapshots / snapshot_id)

    def instance(self, instance_id: str) -> InstancePaths:
        return InstancePaths(dir=self.instances / instance_id)

    def directories(self) -> tuple[Path, ...]:
        """All directories of the store, parents first."""
        return (
            self.home,
            self.images,
            self.snapshots,
            self.instances,
            self.home / "names",
            self.instance_names,
            self.snapshot_names,
            self.locks,
            self.tmp,
        )
