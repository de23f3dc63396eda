"""What Ramet leans on in Firecracker. Each of these would notice a version that breaks it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ramet import Host
from ramet.errors import NoSpaceError
from ramet.hypervisors import ownership
from ramet.hypervisors.firecracker.driver import FirecrackerDriver
from ramet.instances import standby as standby_module
from ramet.linux import procfs
from ramet.model import MIB, PAGE_BYTES, Hypervisor, InstanceInfo, SnapshotKind, State
from ramet.snapshots.dirty import find_dirty
from ramet.store.derive import ANY_METHOD, derive, probe_reflink
from ramet.verify.fingerprints import fingerprint
from tests.capabilities import requires
from tests.file_systems import WHOLE, on_xfs
from tests.kept import Kept
from tests.lab.conftest import SMALL_MIB
from tests.vm.disk_space import take_all_but
from tests.vm.guests import marks, set_marks, sh

pytestmark = [
    requires("firecracker", "kvm"),
    on_xfs,
]

LARGE_MIB = 3600
"""More than Firecracker puts below the gap at the end of the first four GiB."""
USED_BYTES = 2 + 8
"""What one event adds to a used ring: its index, and one element of an id and a length (virtio 1.2, 2.7.8)."""
RESTORES = 100 if WHOLE else 12


@pytest.fixture
def booted(host: Host) -> InstanceInfo:
    """``web``, which has never slept."""
    return host.create("web", memory_mib=SMALL_MIB, disk_bytes=32 * MIB, hypervisor=Hypervisor.FIRECRACKER)


@pytest.fixture
def woken(host: Host, kept: Kept) -> InstanceInfo:
    """``web``, restored from its first snapshot."""
    kept.put_into(host)
    info = host.restore("web")
    set_marks(host, "web", "ram-1", "disk-1")
    return info


def memory_of(host: Host, name: str) -> Path:
    snapshot = host.get(name).snapshot
    assert snapshot is not None
    return Path(snapshot.memory)


def kind_of(info: InstanceInfo) -> SnapshotKind:
    assert info.snapshot is not None
    return info.snapshot.kind


def pid_of(info: InstanceInfo) -> int:
    assert info.pid is not None
    return info.pid


# -- the mapping --------------------------------------------------------------------------------------------------


def test_the_memory_file_is_mapped_privately_by_a_descriptor_that_cannot_write(host: Host, woken: InstanceInfo) -> None:
    """H06, H60."""
    memory = memory_of(host, "web")
    mappings = procfs.mappings_of_file(pid_of(woken), memory)
    assert sum(one.end - one.start for one in mappings) == SMALL_MIB * MIB
    assert {one.perms for one in mappings} == {"rw-p"}
    ino = memory.stat().st_ino
    assert [one.writable for one in procfs.open_descriptors(pid_of(woken)) if one.ino == ino and one.writable] == []
    assert woken.mapped_memory is not None
    assert not woken.mapped_memory.writable


def test_a_running_guest_and_its_diff_write_nothing_to_the_base(host: Host, woken: InstanceInfo) -> None:
    host.standby("web")
    host.snapshot_create("web", "kept")  # it would go with the last instance that needs it
    base = memory_of(host, "web")
    host.restore("web")
    before, stat_before = fingerprint(base), base.stat()
    sh(host, "web", f"ramet-fill /ram/fill {24 * MIB} 1")
    host.fork("web", ["kid"])
    host.standby("web")
    assert memory_of(host, "web") != base, "the diff is a file of its own"
    assert memory_of(host, "kid").stat().st_ino != stat_before.st_ino
    assert fingerprint(base) == before
    assert base.stat().st_mtime_ns == stat_before.st_mtime_ns


@pytest.mark.skipif(not WHOLE, reason="in make test-all: a guest of more than 3 GiB")
def test_memory_in_two_mappings_is_captured_and_woken_whole(host: Host) -> None:
    """H13."""
    host.create("big", memory_mib=LARGE_MIB, disk_bytes=32 * MIB, hypervisor=Hypervisor.FIRECRACKER)
    sh(host, "big", f"ramet-fill /ram/fill {64 * MIB} 1")
    total = sh(host, "big", "ramet-fill --sum /ram/fill")
    host.standby("big")
    info = host.restore("big")
    memory = memory_of(host, "big")
    mappings = procfs.mappings_of_file(pid_of(info), memory)
    assert len(mappings) >= 2, "the gap below four GiB splits it"
    assert sum(one.end - one.start for one in mappings) == LARGE_MIB * MIB
    assert sh(host, "big", "ramet-fill --sum /ram/fill") == total
    sh(host, "big", f"ramet-fill /ram/fill {64 * MIB} 2")
    total = sh(host, "big", "ramet-fill --sum /ram/fill")
    asleep = host.standby("big")
    assert asleep.snapshot is not None
    assert asleep.snapshot.written_bytes < 256 * MIB, "a diff"
    host.restore("big")
    assert sh(host, "big", "ramet-fill --sum /ram/fill") == total


# -- dirty tracking -----------------------------------------------------------------------------------------------


def test_the_third_generation_of_diffs_equals_a_full_snapshot_page_by_page(host: Host, woken: InstanceInfo) -> None:
    """H15, H10: dirty tracking is kept across loads, and a page that the guest zeroed is written as zeros.

    One page may differ: with a vsock device each snapshot writes the event that resets its transport into the guest's memory.
    """
    sh(host, "web", f"ramet-fill /ram/fill {16 * MIB} 1")
    for generation in (2, 3):
        host.standby("web")
        host.restore("web")
        sh(host, "web", f"ramet-fill /ram/other-{generation} {4 * MIB} {generation}; echo {generation} >/ram/mark")
        sh(host, "web", f"dd if=/dev/zero of=/ram/fill bs=1M count={generation} conv=notrunc 2>/dev/null")
    info = host.get("web")
    work = Path(info.run_dir).parent / "work"
    derive(memory_of(host, "web"), work / "diff", allow=ANY_METHOD)
    ownership.give_like(work / "diff", work)
    with FirecrackerDriver().connect(Path(info.run_dir)) as monitor:
        monitor.stop_vcpus()
        monitor.create_snapshot(vmstate="work/diff-state", memory="work/diff", diff=True)
        monitor.create_snapshot(vmstate="work/full-state", memory="work/full", diff=False)
        monitor.resume_vcpus()
    different = different_pages(work / "diff", work / "full")
    assert len(different) <= 1, f"more than the transport's event differs: pages {different[:20]}"
    for page in different:
        pages = (read_page(work / name, page) for name in ("diff", "full"))
        changed = [offset for offset, (one, other) in enumerate(zip(*pages, strict=True)) if one != other]
        assert len(changed) <= USED_BYTES, (
            f"page {page} differs at {changed[:20]}: more than one event in the used ring"
        )
    assert different_pages(work / "diff", memory_of(host, "web")) != []
    for name in ("diff", "full", "diff-state", "full-state"):
        (work / name).unlink()


def read_page(path: Path, number: int) -> bytes:
    with path.open("rb") as stream:
        stream.seek(number * PAGE_BYTES)
        return stream.read(PAGE_BYTES)


def different_pages(left: Path, right: Path) -> list[int]:
    with left.open("rb") as one, right.open("rb") as other:
        assert os.fstat(one.fileno()).st_size == os.fstat(other.fileno()).st_size
        found, page = list[int](), 0
        while data := one.read(MIB):
            there = other.read(MIB)
            if data != there:
                found += [
                    page + i
                    for i in range(len(data) // PAGE_BYTES)
                    if data[i * PAGE_BYTES : (i + 1) * PAGE_BYTES] != there[i * PAGE_BYTES : (i + 1) * PAGE_BYTES]
                ]
            page += len(data) // PAGE_BYTES
        return found


def test_a_diff_writes_what_the_guest_dirtied_and_little_more(host: Host, woken: InstanceInfo) -> None:
    sh(host, "web", f"ramet-fill /ram/fill {32 * MIB} 1")
    with FirecrackerDriver().connect(Path(woken.run_dir)) as monitor:
        monitor.stop_vcpus()
        vmm = host._store.read(woken.id).vmm
        assert vmm is not None
        dirty_bytes = sum(run.length for run in find_dirty(vmm, memory_of(host, "web")))
        monitor.resume_vcpus()
    assert dirty_bytes > 32 * MIB
    asleep = host.standby("web")
    assert asleep.snapshot is not None
    assert asleep.snapshot.written_bytes <= 1.05 * dirty_bytes


# -- diffs that fail, and diffs that are lost ---------------------------------------------------------------------


def test_a_disk_that_fills_up_during_a_diff_costs_nothing_but_that_diff(host: Host, woken: InstanceInfo) -> None:
    """H12: Firecracker may have forgotten the dirty pages, so the next capture takes all of them."""
    sh(host, "web", f"ramet-fill /ram/fill {40 * MIB} 1")
    total = sh(host, "web", "ramet-fill --sum /ram/fill")
    with used_up(host.home, leaving_bytes=12 * MIB + copied_before_the_diff(host, "web")):
        for _ in range(2):
            with pytest.raises(NoSpaceError):
                host.standby("web")
            assert host.get("web").state is State.RUNNING
            assert sh(host, "web", "ramet-fill --sum /ram/fill") == total
    asleep = host.standby("web")
    assert kind_of(asleep) is SnapshotKind.FULL
    assert memory_of(host, "web").stat().st_blocks * 512 < SMALL_MIB * MIB, "pages of zeros take no room"
    host.restore("web")
    assert sh(host, "web", "ramet-fill --sum /ram/fill") == total
    assert marks(host, "web") == ("ram-1", "disk-1")
    assert kind_of(host.standby("web")) is SnapshotKind.DIFF


def copied_before_the_diff(host: Host, name: str) -> int:
    """What a capture copies where it cannot clone, before Firecracker writes anything: the disk, and the base."""
    if probe_reflink(host.home / "tmp") is None:
        return 0
    disk = host.get(name).live_disk
    assert disk is not None
    return sum(path.stat().st_blocks * 512 for path in (Path(disk), memory_of(host, name)))


@contextmanager
def used_up(home: Path, *, leaving_bytes: int) -> Iterator[None]:
    ballast = home.parent / "ballast"
    try:
        take_all_but(ballast, leaving_bytes)
        yield
    finally:
        ballast.unlink()


def test_a_diff_that_is_lost_after_firecracker_reported_success(
    host: Host, woken: InstanceInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H66: its dirty pages went with it, and the next capture takes everything."""
    sh(host, "web", f"ramet-fill /ram/fill {24 * MIB} 1")
    total = sh(host, "web", "ramet-fill --sum /ram/fill")

    def lose(work: Path, *_: object) -> None:
        (work / "memory").unlink()
        raise NoSpaceError("No room to publish it.")

    with monkeypatch.context() as patch:
        patch.setattr(standby_module, "publish", lose)
        with pytest.raises(NoSpaceError):
            host.standby("web")
    assert host.get("web").state is State.RUNNING
    assert kind_of(host.standby("web")) is SnapshotKind.FULL
    host.restore("web")
    assert sh(host, "web", "ramet-fill --sum /ram/fill") == total


def test_the_base_of_the_next_diff_is_removed_meanwhile(host: Host, woken: InstanceInfo) -> None:
    """H67: by its name, it stays for as long as the instance needs it; gone by force or damaged, the next capture takes all."""
    sh(host, "web", "echo ram-2 >/ram/mark; echo disk-2 >/data/mark; sync")
    named = host.snapshot_create("web", "one")
    host.snapshot_remove("one")
    assert Path(named.memory).exists()
    sh(host, "web", "echo ram-3 >/ram/mark")
    assert kind_of(host.standby("web")) is SnapshotKind.DIFF
    host.restore("web")
    assert marks(host, "web") == ("ram-3", "disk-2")

    host.snapshot_create("web", "two")
    shutil.rmtree(host.snapshot_get("two").dir)
    sh(host, "web", "echo ram-4 >/ram/mark")
    assert kind_of(host.standby("web")) is SnapshotKind.FULL
    host.restore("web")
    assert marks(host, "web") == ("ram-4", "disk-2")
    (host.home / "names" / "snapshots" / "two").unlink()

    cut = Path(host.snapshot_create("web", "three").memory)
    os.truncate(cut, cut.stat().st_size // 2)  # Firecracker would fill the gap with zeros and call it complete
    sh(host, "web", "echo ram-5 >/ram/mark")
    assert kind_of(host.standby("web")) is SnapshotKind.FULL
    host.restore("web")
    assert marks(host, "web") == ("ram-5", "disk-2")
    host.snapshot_remove("three")


def test_live_captures_in_a_row_each_hold_their_own_moment(host: Host, booted: InstanceInfo) -> None:
    """Each is a diff onto the one before, of a guest that never slept."""
    for number in (1, 2, 3):
        set_marks(host, "web", f"ram-{number}", f"disk-{number}")
        sh(host, "web", f"ramet-fill /ram/fill-{number} {4 * MIB} {number}")
        made = host.snapshot_create("web", f"moment-{number}")
        assert made.kind is (SnapshotKind.FULL if number == 1 else SnapshotKind.DIFF)
    host.fork("web", ["live"], start=True)
    host.standby("web")
    for number in (1, 2, 3):
        host.fork(f"snapshot:moment-{number}", [f"kid-{number}"], start=True)
        assert marks(host, f"kid-{number}") == (f"ram-{number}", f"disk-{number}")
        assert sh(host, f"kid-{number}", "ls /ram | grep -c fill") == str(number)
    assert marks(host, "live") == ("ram-3", "disk-3")


# -- the agent ----------------------------------------------------------------------------------------------------


def test_every_restore_is_answered_by_its_first_command(host: Host, woken: InstanceInfo) -> None:
    """The guest resets its transport after each load; a connection that is made at once may die of it."""
    asleep = host.standby("web")
    assert asleep.snapshot is not None
    for number in range(RESTORES):
        host.restore("web", snapshot=asleep.snapshot.id, discard_memory=True, discard_disk=True)
        assert sh(host, "web", "cat /ram/mark") == "ram-1", f"restore {number}"
