"""Every path of the store, in one place.

$RAMET_HOME/
  images/<digest>/   tags/<name>
  snapshots/<id>/    manifest.json vmstate memory disk.raw memory.sums disk.sums   0400, published by one rename
  instances/<id>/    instance.json  work/  run/  logs/
  names/instances/<name>   names/snapshots/<name>               hold an id, created with link(2)
  locks/             files that carry OFD locks
  tmp/<id>/          work in progress, swept at start-up
  bench-<tag>/       a store of its own, while `ramet bench` is at work
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

AGENT_PORTS = 8
CONSOLE_SOCKET = "console.sock"
QMP_SOCKET = "qmp.sock"
API_SOCKET = "api.sock"
"""Firecracker's REST interface."""
VSOCK_SOCKET = "vsock.sock"
"""Where Firecracker takes connections to its guest's vsock."""


@dataclass(frozen=True, kw_only=True)
class SnapshotPaths:
    """The files of a snapshot, published or in the making."""

    dir: Path

    @cached_property
    def manifest(self) -> Path:
        return self.dir / "manifest.json"

    @cached_property
    def vmstate(self) -> Path:
        return self.dir / "vmstate"

    @cached_property
    def memory(self) -> Path:
        return self.dir / "memory"

    @cached_property
    def disk(self) -> Path:
        return self.dir / "disk.raw"

    @cached_property
    def memory_sums(self) -> Path:
        return self.dir / "memory.sums"

    @cached_property
    def disk_sums(self) -> Path:
        return self.dir / "disk.sums"


@dataclass(frozen=True, kw_only=True)
class InstancePaths:
    """``work/`` holds the live disk, memory and device state, ``run/`` sockets, ``logs/`` the VMM's words."""

    dir: Path

    @cached_property
    def record(self) -> Path:
        return self.dir / "instance.json"

    @cached_property
    def work(self) -> Path:
        return self.dir / "work"

    @cached_property
    def run(self) -> Path:
        return self.dir / "run"

    @cached_property
    def logs(self) -> Path:
        return self.dir / "logs"

    @cached_property
    def disk(self) -> Path:
        return self.work / "disk.raw"

    @cached_property
    def memory(self) -> Path:
        return self.work / "memory"

    @cached_property
    def next_memory(self) -> Path:
        """What a VMM that saves its memory itself writes, until it is published."""
        return self.work / "memory.next"

    @cached_property
    def vmstate(self) -> Path:
        return self.work / "vmstate"

    @cached_property
    def console_log(self) -> Path:
        return self.logs / "console.log"

    @cached_property
    def vmm_log(self) -> Path:
        return self.logs / "vmm.log"


@dataclass(frozen=True, kw_only=True)
class StorePaths:
    """The store; its tree is drawn above."""

    home: Path

    @cached_property
    def images(self) -> Path:
        return self.home / "images"

    @cached_property
    def snapshots(self) -> Path:
        return self.home / "snapshots"

    @cached_property
    def instances(self) -> Path:
        return self.home / "instances"

    @cached_property
    def instance_names(self) -> Path:
        return self.home / "names" / "instances"

    @cached_property
    def snapshot_names(self) -> Path:
        return self.home / "names" / "snapshots"

    @cached_property
    def locks(self) -> Path:
        return self.home / "locks"

    @cached_property
    def tmp(self) -> Path:
        return self.home / "tmp"

    def snapshot(self, snapshot_id: str) -> SnapshotPaths:
        return _snapshot(self.snapshots, snapshot_id)

    def instance(self, instance_id: str) -> InstancePaths:
        return _instance(self.instances, instance_id)

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


@lru_cache(maxsize=4096)
def _snapshot(snapshots: Path, snapshot_id: str) -> SnapshotPaths:
    return SnapshotPaths(dir=snapshots / snapshot_id)


@lru_cache(maxsize=4096)
def _instance(instances: Path, instance_id: str) -> InstancePaths:
    return InstancePaths(dir=instances / instance_id)
