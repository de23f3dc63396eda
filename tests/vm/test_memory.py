"""What is captured of a guest's memory: both ways to find dirty pages, zeroed pages, several restores, bytes written."""

from __future__ import annotations

from pathlib import Path

import pytest

from ramet import Host
from ramet.linux import pagemap, procfs
from ramet.linux.mounts import file_system_of
from ramet.model import MIB, InstanceInfo, Method, SnapshotFile, State
from ramet.paths import SnapshotPaths
from ramet.snapshots import manifest as manifests
from ramet.snapshots import scatter
from tests.capabilities import requires
from tests.file_systems import on_xfs
from tests.vm.guests import sh


def _fill(host: Host, name: str, mib: int, seed: int) -> str:
    sh(host, name, f"ramet-fill /ram/fill {mib * MIB} {seed}")
    return sh(host, name, "ramet-fill --sum /ram/fill")


@pytest.mark.parametrize("method", ["scan", "pagemap"])
def test_a_second_generation_is_whole(
    host: Host, running: InstanceInfo, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By PAGEMAP_SCAN and by the pagemap's entries alike (H09, H14)."""
    if method == "scan" and not pagemap.has_pagemap_scan():
        pytest.skip("this kernel has no PAGEMAP_SCAN")
    monkeypatch.setattr(pagemap, "has_pagemap_scan", lambda: method == "scan")
    first = _fill(host, "web", 48, seed=1)
    host.standby("web")
    host.restore("web")
    assert sh(host, "web", "ramet-fill --sum /ram/fill") == first
    sh(host, "web", f"ramet-fill /ram/fill {5 * MIB} 2; ramet-fill /ram/more {3 * MIB} 3")
    sums = sh(host, "web", "ramet-fill --sum /ram/fill; ramet-fill --sum /ram/more")
    second = host.standby("web").snapshot
    assert second is not None
    assert 8 * MIB < second.written_bytes < 32 * MIB, "a diff writes the dirty pages, not the memory"
    host.restore("web")
    assert sh(host, "web", "ramet-fill --sum /ram/fill; ramet-fill --sum /ram/more") == sums


@requires("seccomp")
def test_a_guests_memory_is_not_to_be_in_huge_pages(host: Host, running: InstanceInfo) -> None:
    """QEMU advises it, and the first touch of each such page of a file reads 4 MiB."""
    flags = {line for line in smaps_of_memory(host, "web") if line.startswith("VmFlags:")}
    assert flags, "the memory file is mapped"
    assert not any("hg" in line.split() for line in flags)


def smaps_of_memory(host: Host, name: str) -> list[str]:
    """The lines of /proc/PID/smaps about the memory file that a VMM has mapped (proc(5))."""
    info = host.get(name)
    assert info.mapped_memory is not None
    found, is_memory = [], False
    for line in Path(f"/proc/{info.pid}/smaps").read_text().splitlines():
        if not line.split()[0].endswith(":"):
            is_memory = line.endswith(info.mapped_memory.path)
        if is_memory:
            found.append(line)
    return found


@on_xfs
def test_a_memory_file_that_sleeps_have_scattered_is_written_whole_at_one(
    host: Host, standby: InstanceInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H73; a fork begins with no pieces of its own, however many its source has."""

    def sleep() -> SnapshotFile:
        host.restore("web")
        snapshot = host.standby("web").snapshot
        assert snapshot is not None
        return pieces_of(host, snapshot.id)

    before = sleep()
    assert before.method is Method.REFLINK
    assert before.pieces > 100, "of a guest that has only woken"
    monkeypatch.setattr(scatter, "PIECES_MAX", before.pieces)
    whole = sleep()
    assert (whole.method, whole.pieces) == (Method.COPY, 0)
    monkeypatch.undo()
    again = sleep()
    assert again.method is Method.REFLINK
    assert again.pieces > 0
    [fork] = host.fork("web", ["fork"]).instances
    assert fork.snapshot is not None
    assert pieces_of(host, fork.snapshot.id).pieces == 0
    assert all(check.whole for check in host.snapshot_check())
    host.restore("fork", verified=True)
    assert sh(host, "fork", "cat /ram/mark") == "ram-source"


def pieces_of(host: Host, snapshot_id: str) -> SnapshotFile:
    """Of memory."""
    return manifests.load(SnapshotPaths(dir=host.home / "snapshots" / snapshot_id)).memory


@requires("pagemap-scan")
def test_both_ways_find_the_same_pages_in_a_paused_vmm(host: Host, standby: InstanceInfo) -> None:
    host.restore("web")
    _fill(host, "web", 7, seed=4)
    info = host.pause("web")
    assert info.pid is not None
    assert info.mapped_memory is not None
    ram = [mapping for mapping in procfs.mappings(info.pid) if mapping.ino == info.mapped_memory.ino]
    assert sum(mapping.end - mapping.start for mapping in ram) == 256 * MIB
    for mapping in ram:
        scanned = pagemap.scan_pagemap(info.pid, mapping.start, mapping.end)
        assert scanned == pagemap.read_pagemap(info.pid, mapping.start, mapping.end)
        assert sum(region.end - region.start for region in scanned) > 7 * MIB


def test_pages_that_the_guest_zeroed_are_not_taken_for_holes(host: Host, running: InstanceInfo) -> None:
    """H10: the base must not show through."""
    _fill(host, "web", 16, seed=5)
    host.standby("web")
    host.restore("web")
    sh(host, "web", "dd if=/dev/zero of=/ram/fill bs=1M count=16 conv=notrunc 2>/dev/null; sync")
    host.standby("web")
    host.restore("web")
    assert sh(host, "web", "ramet-fill --sum /ram/fill").startswith("0" * 16)


def test_one_snapshot_is_restored_many_times(host: Host, standby: InstanceInfo) -> None:
    host.snapshot_create("web", "golden")
    for turn in range(8):
        host.restore("web", snapshot="golden", discard_memory=True, discard_disk=True)
        assert sh(host, "web", "cat /ram/mark; echo x >>/ram/turns; wc -l </ram/turns") == "ram-source\n1", turn


def test_what_a_vmm_maps_is_told_by_the_kernel(host: Host, standby: InstanceInfo) -> None:
    """With reflinks a private clone of its own; without them, its own snapshot, and nothing that others use."""
    before = host.get("web").snapshot
    assert before is not None
    info = host.restore("web")
    assert info.mapped_memory is not None
    on_xfs = file_system_of(host.home) == "xfs"
    assert (info.mapped_memory.path == before.memory) == (not on_xfs)
    host.standby("web")
    host.snapshot_create("web", "golden")
    again = host.restore("web")
    assert again.mapped_memory is not None
    assert again.snapshot is not None
    assert again.mapped_memory.path != again.snapshot.memory, "a named snapshot is never opened for writing"


def test_more_memory_than_one_slot(host: Host) -> None:
    """H13: 4 GiB, of which little is touched, sleep and wake right."""
    info = host.create("big", memory_mib=4096, disk_bytes=64 * MIB)
    assert info.state is State.RUNNING
    total = _fill(host, "big", 32, seed=6)
    snapshot = host.standby("big").snapshot
    assert snapshot is not None
    assert snapshot.written_bytes < 400 * MIB
    host.restore("big")
    assert sh(host, "big", "ramet-fill --sum /ram/fill") == total
