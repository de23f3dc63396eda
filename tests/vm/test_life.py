"""The states of an instance, over real guests: each verb, each way to lose a VMM, and never old memory with a newer disk."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from ramet import Host
from ramet.config import MEMORY_MIN_MIB
from ramet.errors import ConflictError, StateError, VmmDiedError
from ramet.model import MIB, Failure, InstanceInfo, SnapshotKind, State
from ramet.process import wait_until
from tests.file_systems import on_ext4
from tests.vm.guests import marks, set_marks, sh


@on_ext4
def test_instances_survive_the_host_object_that_made_them(host: Host, running: InstanceInfo) -> None:
    again = Host(host.home)
    assert again.get("web").pid == running.pid
    assert sh(again, "web", "cat /ram/mark") == "ram-source"


@pytest.mark.parametrize("file_system", ["ext4"], indirect=True)
def test_the_smallest_guest_boots_sleeps_and_wakes(host: Host) -> None:
    host.create("tiny", memory_mib=MEMORY_MIN_MIB, disk_bytes=32 * MIB)
    sh(host, "tiny", "echo ram >/ram/mark")
    host.standby("tiny")
    host.restore("tiny")
    assert sh(host, "tiny", "cat /ram/mark") == "ram"


def test_two_sleeps_in_a_row_keep_memory_and_disk(host: Host, standby: InstanceInfo) -> None:
    nonce = None
    for turn in range(3):
        host.restore("web")
        ping = host.ping("web")
        assert nonce in (None, ping.nonce)
        nonce = ping.nonce
        expected = ("ram-source", "disk-source") if turn == 0 else (f"ram-{turn - 1}", f"disk-{turn - 1}")
        assert marks(host, "web") == expected
        set_marks(host, "web", f"ram-{turn}", f"disk-{turn}")
        snapshot = host.standby("web").snapshot
        assert snapshot is not None
        assert snapshot.kind is SnapshotKind.DIFF
    assert len(host.snapshots()) == 1, "a snapshot that nothing references any more is deleted"


@on_ext4
def test_a_guest_keeps_time_by_its_tsc_and_stops_its_ticks(host: Host, standby: InstanceInfo) -> None:
    """However busy the host was when it booted: one that distrusts its TSC takes much more CPU when idle, and loses time."""
    host.restore("web")
    assert sh(host, "web", "cat /sys/devices/system/clocksource/clocksource0/current_clocksource") in (
        "tsc",
        "tsc-early",
    )
    ticks = sh(host, "web", "grep -E 'hres_active|nohz_mode' /proc/timer_list").split()
    assert ticks == [".hres_active", ":", "1", ".nohz_mode", ":", "2"], "in high resolution, and they can stop"


@on_ext4
def test_pause_and_resume(host: Host, running: InstanceInfo) -> None:
    assert host.pause("web").state is State.PAUSED
    host.pause("web")
    assert host.last_note == "already paused"
    with pytest.raises(StateError) as refused:
        host.exec("web", ["true"])
    assert refused.value.actual == "paused"
    assert host.resume("web").state is State.RUNNING
    assert sh(host, "web", "cat /ram/mark") == "ram-source"


@on_ext4
def test_standby_from_paused(host: Host, running: InstanceInfo) -> None:
    host.pause("web")
    assert host.standby("web").state is State.STANDBY
    host.restore("web")
    assert marks(host, "web") == ("ram-source", "disk-source")


def test_stop_and_start_keep_the_disk_and_lose_the_memory(host: Host, running: InstanceInfo) -> None:
    before = host.ping("web")
    assert host.stop("web").state is State.STOPPED
    assert host.snapshots() == []
    host.start("web")
    assert host.ping("web").nonce != before.nonce
    assert sh(host, "web", "cat /data/mark; ls /ram") == "disk-source"


def test_stop_from_standby_must_be_told_to_discard_the_memory(host: Host, standby: InstanceInfo) -> None:
    with pytest.raises(StateError, match="loses the memory"):
        host.stop("web")
    assert host.get("web").state is State.STANDBY
    assert host.stop("web", discard_memory=True).state is State.STOPPED
    assert host.snapshots() == []
    host.start("web")
    assert sh(host, "web", "cat /data/mark") == "disk-source"


@on_ext4
@pytest.mark.parametrize("command", ["poweroff", "reboot"])
def test_a_guest_that_ends_by_itself_is_stopped(host: Host, running: InstanceInfo, command: str) -> None:
    sh(host, "web", f"{command} >/dev/null 2>&1 &")
    wait_until(lambda: host.get("web").state is State.STOPPED, 30, what="the guest to end")
    info = host.get("web")
    assert info.failure is None
    assert info.pid is None
    host.start("web")
    assert sh(host, "web", "cat /data/mark") == "disk-source"


@on_ext4
def test_a_guest_whose_kernel_panics_has_failed_and_says_why(host: Host, standby: InstanceInfo) -> None:
    host.restore("web")
    set_marks(host, "web", "ram-newer", "disk-newer")
    with pytest.raises(VmmDiedError):
        sh(host, "web", "echo c >/proc/sysrq-trigger")
    wait_until(lambda: host.get("web").state is State.FAILED, 30, what="the guest to end")
    info = host.get("web")
    assert info.failure is Failure.GUEST_PANICKED
    assert info.failure_detail is not None
    assert "panicked (sysrq triggered crash)" in info.failure_detail
    assert "sysrq_handle_crash" in info.failure_detail
    with pytest.raises(StateError, match="panicked, and its disk is newer"):
        host.restore("web")
    host.start("web")
    assert sh(host, "web", "cat /data/mark; ls /ram") == "disk-newer"
    sh(host, "web", "poweroff >/dev/null 2>&1 &")
    wait_until(lambda: host.get("web").pid is None, 30, what="the guest to end")
    assert host.get("web").state is State.STOPPED, "that was an earlier guest's panic"


@on_ext4
def test_a_guest_that_panics_while_it_shuts_down_has_not_shut_down(host: Host, running: InstanceInfo) -> None:
    sh(host, "web", "printf '#!/bin/sh\\necho c >/proc/sysrq-trigger\\n' >/etc/init.d/rcK")
    with pytest.raises(VmmDiedError, match="did not shut down in order"):
        host.stop("web")
    info = host.get("web")
    assert (info.state, info.failure) == (State.FAILED, Failure.GUEST_PANICKED)
    host.start("web")
    assert sh(host, "web", "cat /data/mark") == "disk-source"


def _lose_vmm(host: Host, name: str) -> None:
    """Kill the VMM as a crash would, with the disk newer than the snapshot that it woke from."""
    host.restore(name)
    set_marks(host, name, "ram-newer", "disk-newer")
    pid = host.get(name).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: host.get(name).state is State.FAILED, 30, what="the loss to be seen")


def test_a_lost_vmm_never_pairs_old_memory_with_its_newer_disk(host: Host, standby: InstanceInfo) -> None:
    """H69."""
    _lose_vmm(host, "web")
    info = host.get("web")
    assert info.failure is Failure.VMM_LOST
    with pytest.raises(StateError, match="newer than its last snapshot"):
        host.restore("web")
    assert standby.snapshot is not None
    host.start("web")
    assert host.last_note == f"booted from its disk; its last sleep, {standby.snapshot.id}, is given up"
    assert host.snapshots() == []
    nonce = host.ping("web").nonce
    assert sh(host, "web", "cat /data/mark; ls /ram") == "disk-newer"
    host.standby("web")
    host.restore("web")
    assert host.ping("web").nonce == nonce


def test_a_lost_vmm_can_be_rolled_back_with_its_disk(host: Host, standby: InstanceInfo) -> None:
    _lose_vmm(host, "web")
    assert host.restore("web", discard_disk=True).state is State.RUNNING
    assert marks(host, "web") == ("ram-source", "disk-source")
    assert host.get("web").failure is None


def test_rollback_to_a_named_snapshot(host: Host, running: InstanceInfo) -> None:
    taken = host.snapshot_create("web", "before")
    assert marks(host, "web") == ("ram-source", "disk-source"), "it runs on after a snapshot"
    set_marks(host, "web", "ram-later", "disk-later")
    with pytest.raises(StateError):
        host.restore("web", snapshot="before")
    with pytest.raises(StateError):
        host.restore("web", snapshot="before", discard_memory=True)
    assert marks(host, "web") == ("ram-later", "disk-later")
    host.restore("web", snapshot="before", discard_memory=True, discard_disk=True)
    assert marks(host, "web") == ("ram-source", "disk-source")
    set_marks(host, "web", "ram-later", "disk-later")
    host.standby("web")
    host.restore("web", snapshot=taken.id)
    assert marks(host, "web") == ("ram-source", "disk-source")
    host.stop("web")
    host.restore("web", snapshot="before")
    assert marks(host, "web") == ("ram-source", "disk-source")


def test_the_base_of_a_running_instance_cannot_be_deleted(host: Host, standby: InstanceInfo) -> None:
    """H67: what a VMM maps and diffs against is referenced."""
    host.snapshot_create("web", "base")
    base = host.restore("web").mapped_snapshot
    assert base is not None
    host.snapshot_remove("base")
    assert host.last_note is not None
    assert "stay" in host.last_note
    with pytest.raises(ConflictError, match="in use"):
        host.snapshot_remove(base)
    set_marks(host, "web", "ram-2", "disk-2")
    host.standby("web")
    assert [snapshot.id for snapshot in host.snapshots()] != [base]
    host.restore("web")
    assert marks(host, "web") == ("ram-2", "disk-2")


@on_ext4
def test_a_name_is_taken_once(host: Host, running: InstanceInfo) -> None:
    with pytest.raises(ConflictError, match="already"):
        host.create("web")
    with pytest.raises(ConflictError, match="already"):
        host.fork("web", ["web"])
    assert marks(host, "web") == ("ram-source", "disk-source")


@on_ext4
def test_rm_refuses_a_running_instance_and_force_leaves_nothing(host: Host, running: InstanceInfo) -> None:
    with pytest.raises(StateError):
        host.remove("web")
    assert running.pid is not None
    host.remove("web", force=True)
    assert not Path(f"/proc/{running.pid}/fd").exists()
    left = [path for place in ("instances", "snapshots", "tmp", "locks") for path in (host.home / place).iterdir()]
    assert left == []
    assert list((host.home / "names" / "instances").iterdir()) == []
