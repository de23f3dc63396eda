"""The memory policy ``share`` with real guests: one memory for many, until each has slept once."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

import pytest

from ramet import Host
from ramet.linux import memfd, procfs
from ramet.model import MIB, InstanceInfo, MemoryPolicy, State
from ramet.testing import assert_isolated
from ramet.verify.fingerprints import fingerprints
from tests.vm.guests import marks, set_marks, sh

OWN_MAX_BYTES = 100 * MIB
"""Of a VMM under TCG that has done little: its own code, and few pages of its guest."""


def memory_of(info: InstanceInfo) -> tuple[Path, int]:
    assert info.mapped_memory is not None
    return Path(info.mapped_memory.path), info.mapped_memory.ino


def require_refused(path: Path) -> None:
    """Whatever a VMM has its memory open for: the kernel refuses each way to write it, to root too."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        assert memfd.is_sealed(fd)
        for write in (
            lambda: os.pwrite(fd, b"x", 0),
            lambda: os.ftruncate(fd, 0),
            lambda: mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
        ):
            with pytest.raises(PermissionError) as caught:
                write()
            assert caught.value.errno == errno.EPERM
    finally:
        os.close(fd)


def test_forks_map_one_memory_and_diverge(host: Host, booted: InstanceInfo) -> None:
    """On ext4 too, where clones would be copies: no file of any fork's memory is made before its first sleep."""
    standby = host.standby(booted.name)
    assert standby.snapshot is not None
    source = Path(standby.snapshot.dir)
    before = fingerprints(source)
    report = host.fork("web", ["a", "b", "c"], start=True, memory_policy=MemoryPolicy.SHARE)
    assert [one.id for one in host.snapshots()] == [standby.snapshot.id]
    assert len({memory_of(one)[1] for one in report.instances}) == 1
    for one in report.instances:
        assert one.mapped_memory is not None
        assert not one.mapped_memory.writable
        assert one.pid is not None
        assert all("s" not in mapping.perms for mapping in procfs.mappings_of_file(one.pid, memory_of(one)[0]))
        assert procfs.smaps_rollup(one.pid)["Anonymous"] < OWN_MAX_BYTES
        require_refused(memory_of(one)[0])
        assert marks(host, one.name) == ("ram-source", "disk-source")
        set_marks(host, one.name, f"ram-{one.name}", f"disk-{one.name}")
    assert marks(host, "a") == ("ram-a", "disk-a")
    assert_isolated(host, "web", "a", "b", "c")
    slept = host.standby("a").snapshot
    assert slept is not None
    assert slept.parent == standby.snapshot.id
    assert fingerprints(source) == before
    assert host.snapshot_check(slept.id)[0].whole
    host.restore("web")
    set_marks(host, "web", "ram-web", "disk-web")
    host.remove("web", force=True)
    assert fingerprints(source) == before, "b and c need it"
    host.restore("a", verified=True)
    for name in "abc":
        assert marks(host, name) == (f"ram-{name}", f"disk-{name}")
    for name in "bc":
        host.standby(name)
    assert not source.exists()
    host.restore("b")
    assert marks(host, "b") == ("ram-b", "disk-b")
    assert host.check_store().whole


def test_forks_of_a_running_source_and_of_such_a_fork(host: Host, running: InstanceInfo) -> None:
    host.fork("web", ["a"], start=True, memory_policy=MemoryPolicy.SHARE)
    set_marks(host, "a", "ram-a", "disk-a")
    first = host.get("a")
    (second,) = host.fork("a", ["b"], start=True, memory_policy=MemoryPolicy.SHARE).instances
    assert memory_of(first)[1] != memory_of(second)[1], "it shares what a had come to"
    assert marks(host, "b") == ("ram-a", "disk-a")
    assert marks(host, "web") == ("ram-source", "disk-source")
    (third,) = host.fork(f"snapshot:{second.mapped_snapshot}", ["c"], memory_policy=MemoryPolicy.SHARE).instances
    assert third.state is State.STANDBY
    assert memory_of(host.restore("c", verified=True))[1] == memory_of(second)[1]
    host.remove("b", force=True)
    sh(host, "c", "rm /ram/mark")
    assert host.standby("c").state is State.STANDBY
