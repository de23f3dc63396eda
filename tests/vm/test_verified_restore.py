"""Sums with real guests: whole after every kind of snapshot, and a guest wakes from nothing else if that is asked for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ramet import Host, process
from ramet.errors import CorruptError
from ramet.hypervisors.base import LaunchSpec
from ramet.hypervisors.qemu.driver import QemuDriver
from ramet.model import PAGE_BYTES, InstanceInfo, SnapshotInfo, State, VmmProcess
from ramet.snapshots import sums
from tests.unit.snapshots.flipping import flip
from tests.vm.guests import marks, set_marks, sh


def whole(host: Host) -> None:
    found = host.snapshot_check()
    assert found
    assert [one.damage for one in found if not one.whole] == []


def slept_on(info: InstanceInfo) -> SnapshotInfo:
    assert info.snapshot is not None
    return info.snapshot


def test_every_kind_of_snapshot_has_sums_that_fit(host: Host, running: InstanceInfo) -> None:
    """Full, diff, of a running guest, of a fork, of a fork of a running guest, after a rollback; and disks that were written."""
    host.snapshot_create("web", "first")
    set_marks(host, "web", "ram-2", "disk-2")
    host.standby("web")
    whole(host)
    host.restore("web")
    sh(host, "web", "rm /data/mark; head -c 3000000 /dev/urandom >/data/more; echo 3 >/ram/mark; sync")
    host.snapshot_create("web", "second")
    host.fork("web", "live")
    host.standby("web")
    host.fork("web", ["a", "b"])
    whole(host)
    for name in ("a", "live"):
        host.restore(name, verified=True)
        set_marks(host, name, f"ram-{name}", f"disk-{name}")
        host.standby(name)
    host.restore("web", snapshot="first", verified=True)
    assert marks(host, "web") == ("ram-source", "disk-source")
    host.standby("web")
    whole(host)
    assert len(host.snapshot_check()) == 6


def test_a_sleep_reads_no_more_than_may_have_changed(
    host: Host, standby: InstanceInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.restore("web")
    sh(host, "web", "echo again >/ram/mark")
    taken: list[int] = []

    def counting(fd: int, block: bytearray, number: int, regions: list[sums.Region]) -> None:
        taken.append(sum(end - start for start, end in regions))
        digest(fd, block, number, regions)

    digest = sums._digest_regions
    monkeypatch.setattr(sums, "_digest_regions", counting)
    slept = slept_on(host.standby("web"))
    disk_bytes = Path(slept.disk).stat().st_blocks * 512
    assert slept.written_bytes <= sum(taken) <= slept.written_bytes + disk_bytes
    whole(host)


@pytest.mark.parametrize("name", ["memory", "disk"])
def test_a_flipped_byte_is_refused_and_nothing_is_lost_by_that(host: Host, standby: InstanceInfo, name: str) -> None:
    """H19."""
    path = Path(getattr(slept_on(standby), name))
    offset = 37 * PAGE_BYTES + 1234
    flip(path, offset)
    (found,) = host.snapshot_check()
    assert [(damage.file, damage.pages) for damage in found.damage] == [(path.name, ((37, 38),))]
    with pytest.raises(CorruptError, match=rf"{path.name}: page 37 changed"):
        host.restore("web", verified=True)
    assert host.get("web").state is State.STANDBY
    assert process.marked_below(host.home / "instances") == []
    flip(path, offset)
    host.restore("web", verified=True)
    assert marks(host, "web") == ("ram-source", "disk-source")


def test_a_memory_file_that_is_swapped_before_it_is_mapped_is_refused(
    host: Host, standby: InstanceInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H18: by one with the same bytes, even."""
    load = QemuDriver.load

    def swap_and_load(driver: QemuDriver, spec: LaunchSpec) -> VmmProcess:
        assert spec.memory is not None
        shutil.copyfile(spec.memory, spec.memory.with_name("other"))
        spec.memory.with_name("other").replace(spec.memory)
        return load(driver, spec)

    monkeypatch.setattr(QemuDriver, "load", swap_and_load)
    with pytest.raises(CorruptError, match="does not map the file that was checked"):
        host.restore("web", verified=True)
    assert host.get("web").state is State.STANDBY
    assert process.marked_below(host.home / "instances") == []
