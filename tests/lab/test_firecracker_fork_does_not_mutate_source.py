"""The founding scenario, with real Firecracker: whatever a fork does, its source's snapshot stays as it was, and wakes.

Where the host has no KVM this runs in the lab, on XFS with reflinks; in `make test-all` on ext4 too.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ramet import Host
from ramet.linux import procfs
from ramet.model import MIB, Hypervisor, InstanceInfo, MemoryPolicy, Method, SnapshotKind, State
from ramet.store.derive import probe_reflink
from ramet.verify.fingerprints import Fingerprint, fingerprint, fingerprints
from tests.capabilities import requires
from tests.file_systems import WHOLE, on_xfs
from tests.kept import Kept
from tests.vm.guests import marks, set_marks, sh

pytestmark = [
    requires("firecracker", "kvm"),
    on_xfs,
]

MEMORY_MIB = 224
SMALL_MIB = 128
DISK_BYTES = 32 * MIB
FILL_BYTES = 124 * MIB
"""More than half of the guest's memory, incompressible: a copy would cost at least as much."""
LIFE_MAX_BYTES = MEMORY_MIB * MIB // 4


def create(host: Host, name: str, *, memory_mib: int = SMALL_MIB) -> InstanceInfo:
    info = host.create(name, memory_mib=memory_mib, disk_bytes=DISK_BYTES, hypervisor=Hypervisor.FIRECRACKER)
    assert info.hypervisor is Hypervisor.FIRECRACKER
    return info


def snapshot_dir(host: Host, name: str) -> Path:
    snapshot = host.get(name).snapshot
    assert snapshot is not None
    return Path(snapshot.dir)


def requests_of(info: InstanceInfo) -> str:
    """What Firecracker says that it was asked for since its latest launch."""
    return Path(info.logs["vmm"]).read_text()


def used_bytes(home: Path) -> int:
    os.sync()
    return shutil.disk_usage(home).used


def test_a_fork_does_not_mutate_its_source(host: Host) -> None:
    # 1. and 2. A source, booted by Firecracker, with a sentinel in its RAM and on its disk, and most of its memory in use.
    source = create(host, "source", memory_mib=MEMORY_MIB)
    assert source.pid is not None
    assert "firecracker" in Path(f"/proc/{source.pid}/exe").readlink().name
    sh(host, "source", f"ramet-fill /ram/fill {FILL_BYTES} 1")
    set_marks(host, "source", "ram-source", "disk-source")
    filled_sum = sh(host, "source", "ramet-fill --sum /ram/fill")

    # 3. Standby: a full snapshot.
    source = host.standby("source")
    assert source.snapshot is not None
    assert source.snapshot.kind is SnapshotKind.FULL

    # 4. What must not change from here on.
    directory = snapshot_dir(host, "source")
    before = fingerprints(directory)
    assert set(before) == {"memory", "memory.sums", "vmstate", "disk.raw", "disk.sums", "manifest.json"}
    assert before["memory"].allocated_bytes * 2 > MEMORY_MIB * MIB
    used_before_bytes = used_bytes(host.home)

    # 5. The fork has a memory file of its own.
    reflinks = probe_reflink(host.home / "tmp") is None
    report = host.fork("source", ["fork"])
    assert report.method is (Method.REFLINK if reflinks else Method.COPY)
    fork_memory = fingerprint(snapshot_dir(host, "fork") / "memory")
    assert (fork_memory.dev, fork_memory.links) == (before["memory"].dev, 1)
    assert fork_memory.ino != before["memory"].ino
    assert fork_memory.sha256 == before["memory"].sha256
    assert fingerprints(directory) == before

    # 6. It wakes as the source slept, and maps its own inode, privately.
    fork = host.restore("fork")
    assert marks(host, "fork") == ("ram-source", "disk-source")
    assert fork.pid is not None
    mapped = procfs.mappings_of_file(fork.pid, snapshot_dir(host, "fork") / "memory")
    assert sum(one.end - one.start for one in mapped) == MEMORY_MIB * MIB
    assert {one.perms for one in mapped} == {"rw-p"}
    assert procfs.mappings_of_file(fork.pid, directory / "memory") == []

    # 7. It diverges, and sleeps on a diff that Firecracker writes onto its own memory file.
    set_marks(host, "fork", "ram-fork", "disk-fork")
    asleep = host.standby("fork")
    assert asleep.snapshot is not None
    assert asleep.snapshot.kind is SnapshotKind.DIFF
    assert "create diff snapshot" in requests_of(asleep)
    assert Path(asleep.snapshot.memory).stat().st_ino not in {before["memory"].ino, fork_memory.ino}

    # 8. The source is byte-identical; with reflinks the fork's whole life cost far less than its memory.
    assert fingerprints(directory) == before
    if reflinks:
        assert used_bytes(host.home) - used_before_bytes < LIFE_MAX_BYTES

    # 9. The fork wakes from its diff, and is deleted.
    host.restore("fork")
    assert marks(host, "fork") == ("ram-fork", "disk-fork")
    assert sh(host, "fork", "ramet-fill --sum /ram/fill") == filled_sum
    host.remove("fork", force=True)
    assert fingerprints(directory) == before

    # 10. The source wakes: its sentinels are there, the fork's are not.
    host.restore("source")
    assert marks(host, "source") == ("ram-source", "disk-source")
    assert sh(host, "source", "ramet-fill --sum /ram/fill") == filled_sum
    assert sh(host, "source", "grep -l fork /ram/mark /data/mark || true") == ""
    assert fingerprints(directory) == before


@pytest.mark.skipif(not WHOLE, reason="in every run as a scenario of ramet verify; by itself in make test-all")
def test_the_source_sleeps_again_while_one_fork_sleeps_and_another_runs(host: Host) -> None:
    create(host, "source")
    set_marks(host, "source", "ram-old", "disk-old")
    host.standby("source")
    host.fork("source", ["sleeper", "runner"])
    host.restore("runner")
    sleeping = fingerprints(snapshot_dir(host, "sleeper"))
    running = fingerprints(snapshot_dir(host, "runner"))

    host.restore("source")
    set_marks(host, "source", "ram-new", "disk-new")
    second = host.standby("source")
    assert second.snapshot is not None
    assert second.snapshot.kind is SnapshotKind.DIFF

    assert fingerprints(snapshot_dir(host, "sleeper")) == sleeping
    assert fingerprints(snapshot_dir(host, "runner")) == running
    assert marks(host, "runner") == ("ram-old", "disk-old")
    host.restore("sleeper")
    assert marks(host, "sleeper") == ("ram-old", "disk-old")
    host.restore("source")
    assert marks(host, "source") == ("ram-new", "disk-new")


@pytest.mark.skipif(not WHOLE, reason="in every run on QEMU, as a scenario of ramet verify; here in make test-all")
def test_siblings_write_the_same_pages_and_blocks(host: Host) -> None:
    """H20: the disk is as much each one's own as the memory."""
    create(host, "source")
    set_marks(host, "source", "ram-source", "disk-source")
    host.standby("source")
    before = fingerprints(snapshot_dir(host, "source"))
    host.fork("source", ["a", "b"], start=True)
    for name in ("a", "b"):
        set_marks(host, name, f"ram-{name}", f"disk-{name}")
    assert [marks(host, name) for name in ("a", "b")] == [("ram-a", "disk-a"), ("ram-b", "disk-b")]
    assert fingerprints(snapshot_dir(host, "source")) == before
    for name in ("a", "b"):
        host.standby(name)
        host.restore(name)
    assert [marks(host, name) for name in ("a", "b")] == [("ram-a", "disk-a"), ("ram-b", "disk-b")]
    host.restore("source")
    assert marks(host, "source") == ("ram-source", "disk-source")


@pytest.mark.skipif(not WHOLE, reason="in every run on QEMU, as a scenario of ramet verify; here in make test-all")
def test_a_fork_of_a_fork_outlives_the_middle_and_the_source(host: Host) -> None:
    """H41."""
    create(host, "source")
    set_marks(host, "source", "ram-0", "disk-0")
    host.standby("source")
    previous, kept = "source", dict[str, dict[str, Fingerprint]]()
    for depth in (1, 2, 3):
        name = f"deep-{depth}"
        host.fork(previous, [name], start=True)
        assert marks(host, name) == (f"ram-{depth - 1}", f"disk-{depth - 1}")
        set_marks(host, name, f"ram-{depth}", f"disk-{depth}")
        host.standby(name)
        kept[name] = fingerprints(snapshot_dir(host, name))
        previous = name
    host.remove("deep-2")
    host.remove("source")
    for depth in (1, 3):
        name = f"deep-{depth}"
        assert fingerprints(snapshot_dir(host, name)) == kept[name]
        assert host.restore(name).state is State.RUNNING
        assert marks(host, name) == (f"ram-{depth}", f"disk-{depth}")


def test_forks_that_share_its_memory_do_not_either(host: Host, kept: Kept) -> None:
    """All map the published file, read-only, until each has slept; the source wakes from it too, at the same time."""
    kept.put_into(host, "source")
    host.restore("source")
    set_marks(host, "source", "ram-old", "disk-old")
    host.standby("source")
    directory = snapshot_dir(host, "source")
    before = {name: one.sha256 for name, one in fingerprints(directory).items()}
    forks = host.fork("source", ["a", "b", "c"], start=True, memory_policy=MemoryPolicy.SHARE).instances
    for one in (*forks, host.restore("source")):
        assert one.mapped_memory is not None
        assert one.mapped_memory.path == str(directory / "memory")
        assert not one.mapped_memory.writable
        assert marks(host, one.name) == ("ram-old", "disk-old")
        set_marks(host, one.name, f"ram-{one.name}", f"disk-{one.name}")
    assert (directory / "memory").stat().st_uid == os.geteuid()
    asleep = host.standby("a")
    assert asleep.snapshot is not None
    assert asleep.snapshot.kind is SnapshotKind.DIFF
    host.standby("source")
    assert {name: one.sha256 for name, one in fingerprints(directory).items()} == before
    host.remove("source")
    host.restore("a")
    for name in "abc":
        assert marks(host, name) == (f"ram-{name}", f"disk-{name}")
    host.standby("b")
    host.remove("c", force=True)
    assert not directory.exists()
    assert host.check_store().whole
