"""Verbs that end half-way, forced at named points: what they leave is told truly, and the next command mends it."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ramet import Host
from ramet.errors import CorruptError, GuestError, NoSpaceError
from ramet.guests.client import AgentClient
from ramet.instances import guest
from ramet.model import Failure, InstanceInfo, State
from ramet.store import atomic
from tests.file_systems import on_ext4
from tests.vm.guests import marks, set_marks, sh

pytestmark = on_ext4


class KilledError(BaseException):
    """Stands for what no clean-up may swallow."""


def _die_in_thaw(monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_arguments: object, **_named: object) -> None:
        raise KilledError

    monkeypatch.setattr(guest, "thaw", die)


def _record(host: Host, info: InstanceInfo) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode((host.home / "instances" / info.id / "instance.json").read_bytes())
    return found


def test_a_resume_that_died_before_its_thaw_is_not_captured_as_if_paused(
    host: Host, running: InstanceInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record says paused, the vCPUs run: a capture would pair a disk with another instant's memory (H22)."""
    host.pause("web")
    with monkeypatch.context() as patched:
        _die_in_thaw(patched)
        with pytest.raises(KilledError):
            host.resume("web")
    assert _record(host, running)["state"] == "paused"
    assert _record(host, running)["pending"] == "resume"
    host.standby("web")
    host.restore("web")
    assert marks(host, "web") == ("ram-source", "disk-source")


def test_a_guest_left_frozen_is_thawed_by_the_next_command(
    host: Host, running: InstanceInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H43, H71: also where the clean-up itself was interrupted, and also if that command is an exec."""
    with monkeypatch.context() as patched:
        _die_in_thaw(patched)
        with pytest.raises(KilledError):
            host.snapshot_create("web", "golden")
    assert _record(host, running)["pending"] == "snapshot"
    assert sh(host, "web", "cat /sys/fs/cgroup/workload/cgroup.freeze") == "0"
    assert _record(host, running)["pending"] is None
    set_marks(host, "web", "ram-later", "disk-later")
    assert marks(host, "web") == ("ram-later", "disk-later")


@pytest.mark.parametrize("rolls_back", [False, True], ids=["waking", "rolling back"])
def test_a_restore_whose_thaw_fails_did_not_happen(
    host: Host, running: InstanceInfo, monkeypatch: pytest.MonkeyPatch, rolls_back: bool
) -> None:
    """The record says running by then: the workload must not run before that is durable."""
    if rolls_back:
        host.snapshot_create("web", "golden")
        set_marks(host, "web", "ram-later", "disk-later")
        host.stop("web")
    else:
        host.standby("web")
    before = host.get("web")

    def refuse(*_arguments: object, **_named: object) -> None:
        raise GuestError("no thaw today")

    with monkeypatch.context() as patched:
        patched.setattr(AgentClient, "thaw", refuse)
        with pytest.raises(GuestError, match="no thaw today"):
            host.restore("web", snapshot="golden" if rolls_back else None, discard_disk=rolls_back)
    after = host.get("web")
    assert (after.state, after.failure, after.snapshot) == (before.state, None, before.snapshot)
    if rolls_back:
        host.start("web")
        assert sh(host, "web", "cat /data/mark") == "disk-later"
    else:
        host.restore("web")
        assert marks(host, "web") == ("ram-source", "disk-source")


def test_a_rollback_of_a_live_vm_that_fails_can_be_tried_again(
    host: Host, standby: InstanceInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memory was given up: the snapshot that it was to go back to, which nothing refers to, is all that is left."""
    assert standby.snapshot is not None
    host.restore("web")
    set_marks(host, "web", "ram-later", "disk-later")

    def refuse(*_arguments: object, **_named: object) -> None:
        raise GuestError("no thaw today")

    with monkeypatch.context() as patched:
        patched.setattr(AgentClient, "thaw", refuse)
        with pytest.raises(GuestError, match="no thaw today"):
            host.restore("web", snapshot=standby.snapshot.id, discard_memory=True, discard_disk=True)
    assert host.get("web").state is State.STOPPED
    host.restore("web", snapshot=standby.snapshot.id, discard_disk=True)
    assert marks(host, "web") == ("ram-source", "disk-source")


def test_a_rollback_killed_when_it_had_happened_keeps_its_disk(host: Host, running: InstanceInfo) -> None:
    """Killed between the record, which says running, and the removal of the disk that had been set aside."""
    host.snapshot_create("web", "golden")
    set_marks(host, "web", "ram-later", "disk-later")
    host.restore("web", snapshot="golden", discard_memory=True, discard_disk=True)
    instance = host.home / "instances" / running.id
    aside = instance / "work" / "disk.before-rollback.raw"
    aside.write_bytes(b"the disk of before")
    (instance / "instance.json").write_bytes(msgspec.json.encode({**_record(host, running), "pending": "restore"}))
    host.stop("web", force=True)
    assert not aside.exists()
    host.start("web")
    assert sh(host, "web", "cat /data/mark") == "disk-source"


def test_a_sleep_whose_record_cannot_be_written_did_not_happen(
    host: Host, booted: InstanceInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = atomic.write_json

    def refuse_standby(path: Path, value: msgspec.Struct, *, durable: bool = True) -> None:
        if getattr(value, "state", None) is State.STANDBY:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, value, durable=durable)

    with monkeypatch.context() as patched:
        patched.setattr(atomic, "write_json", refuse_standby)
        with pytest.raises(NoSpaceError):
            host.standby("web")
    assert host.get("web").state is State.RUNNING
    assert marks(host, "web") == ("ram-source", "disk-source")
    assert host.snapshots() == []


def test_a_start_records_the_vmm_that_it_booted_with(
    host: Host, running: InstanceInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H61: after an upgrade, the next sleep is the new VMM's."""
    from ramet.hypervisors.qemu import driver

    host.stop("web")
    monkeypatch.setattr(driver, "version", lambda path: "9.9 (a newer one)")
    host.start("web")
    host.standby("web")
    host.restore("web")
    assert sh(host, "web", "cat /data/mark") == "disk-source"
    assert _record(host, running)["vmm_build"]["version"] == "9.9 (a newer one)"


def test_one_damaged_record_does_not_hide_the_others(host: Host, running: InstanceInfo) -> None:
    host.standby("web")
    host.fork("web", ["other"])
    damaged = host.home / "instances" / host.get("other").id / "instance.json"
    damaged.write_bytes(damaged.read_bytes()[:100])
    by_name = {info.name: info for info in host.list()}
    assert by_name["web"].state is State.STANDBY
    assert by_name["other"].failure is Failure.RECORD_DAMAGED
    with pytest.raises(CorruptError, match="is damaged"):
        host.restore("other")
    host.restore("web")
    assert marks(host, "web") == ("ram-source", "disk-source")
    with pytest.raises(CorruptError):
        host.remove("other")
    host.remove("other", force=True)
    assert [info.name for info in host.list()] == ["web"]
    for snapshot in host.snapshots():
        if not snapshot.referenced_by:
            host.snapshot_remove(snapshot.id)
