"""The memory policy ``share`` over VMs that are played: who maps what, what must stay, and what is refused.

``test_sequences.py`` takes it through random sequences; here is what one of those does not see.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ramet.errors import (
    ConflictError,
    CorruptError,
    GuestTimeoutError,
    InUseError,
    LockedError,
    NoSpaceError,
    RoomError,
    StateError,
    UnsupportedError,
)
from ramet.hypervisors import confinement
from ramet.hypervisors.qemu.driver import LOAD_DEADLINE_S
from ramet.instances import birth, context, guest, sharing
from ramet.instances.context import Store
from ramet.linux import memfd, memory
from ramet.model import MIB, Hypervisor, InstanceInfo, MemoryPolicy, State
from ramet.snapshots import copies_in_ram
from ramet.store.locks import DEFAULT_TIMEOUT_S, locked
from tests.capabilities import requires
from tests.model.machine import Words
from tests.model.played_stage import PlayedStage
from tests.unit.snapshots.flipping import flip

pytestmark = requires("gcc")
WROTE = Words(ram=(1, 2, 3, 4), disk=(5, 6, 7), register=8)
SHARE = MemoryPolicy.SHARE
KINDS = {
    "read-only": (Hypervisor.QEMU, True),
    "copy-in-ram": (Hypervisor.QEMU, False),
    "last-capture": (Hypervisor.FIRECRACKER, True),
}
of_older_qemu = pytest.mark.parametrize("kind", ["copy-in-ram"])
of_all = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def stage(in_memory: Path, program: Path, played: None, kind: str) -> Iterator[PlayedStage]:
    """With ``web``, which has written and sleeps."""
    hypervisor, read_only = KINDS[kind]
    stage = PlayedStage(in_memory, program, mapped_read_only=read_only)
    stage.create("web", hypervisor)
    stage.write("web", WROTE)
    stage.host.standby("web")
    yield stage
    stage.close()


def share(stage: PlayedStage, count: int, source: str = "web", *, start: bool = True) -> list[InstanceInfo]:
    return list(stage.host.fork(source, count=count, start=start, memory_policy=SHARE).instances)


def snapshots(stage: PlayedStage) -> set[str]:
    return {one.id for one in stage.host.snapshots()}


def mapped(info: InstanceInfo) -> int:
    assert info.mapped_memory is not None
    assert not info.mapped_memory.writable
    return info.mapped_memory.ino


@of_all
def test_forks_map_one_inode_which_none_can_write_and_begin_as_the_source_was(stage: PlayedStage) -> None:
    before = snapshots(stage)
    forks = share(stage, 3)
    assert snapshots(stage) == before, "they have none of their own"
    assert len({mapped(one) for one in forks}) == 1
    for one in forks:
        assert stage.write(one.name, replace(WROTE, register=len(one.name))) == WROTE
        assert one.memory_policy is SHARE
    assert stage.host.check_store().whole


@of_all
def test_a_first_sleep_makes_a_snapshot_of_its_own_and_the_last_gives_the_shared_one_back(stage: PlayedStage) -> None:
    shared = stage.host.get("web").snapshot
    assert shared is not None
    share(stage, 2)
    stage.host.remove("web")
    with pytest.raises(InUseError, match="instance web-1"):
        stage.host.snapshot_remove(shared.id)
    changed = replace(WROTE, ram=(9, 2, 3, 9))
    stage.write("web-1", changed)
    slept = stage.host.standby("web-1").snapshot
    assert slept is not None
    assert slept.parent == shared.id
    assert shared.id in snapshots(stage)
    assert stage.write("web-2", WROTE) == WROTE
    stage.host.remove("web-2", force=True)
    assert snapshots(stage) == {slept.id}
    woken = stage.host.restore("web-1")
    assert stage.write("web-1", changed) == changed
    assert woken.mapped_memory is not None
    assert "/proc/" not in woken.mapped_memory.path
    assert stage.host.snapshot_check()[0].whole


@of_all
def test_forks_of_a_running_source_share_its_capture(stage: PlayedStage) -> None:
    stage.host.restore("web")
    later = replace(WROTE, ram=(1, 1, 1, 1))
    stage.write("web", later)
    forks = share(stage, 2)
    stage.write("web", WROTE)
    stage.host.standby("web")
    for one in forks:
        assert stage.write(one.name, later) == later
    assert len({mapped(stage.host.get(one.name)) for one in forks}) == 1


@of_all
def test_a_fork_of_a_running_source_that_does_not_wake_is_given_up_at_once(
    stage: PlayedStage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing refers to what they share for a moment, which is not waited for: it is in our own hands."""
    stage.host.restore("web")
    identified = guest.identified

    def fail_first(run_dir: Path, record: Any, **options: Any) -> Any:
        if record.name == "web-1":
            raise GuestTimeoutError("It does not answer.")
        return identified(run_dir, record, **options)

    monkeypatch.setattr(guest, "identified", fail_first)
    monkeypatch.setattr(context, "COLLECT_TIMEOUT_S", 60.0)
    began = time.monotonic()
    report = stage.host.fork("web", count=2, start=True, memory_policy=SHARE, partial=True)
    assert time.monotonic() - began < 30
    assert [one.name for one in report.failures] == ["web-1"]
    assert "was left" not in caplog.text
    assert stage.write("web-2", WROTE) == WROTE


@of_all
def test_of_forks_of_a_running_source_that_all_failed_nothing_is_left(
    stage: PlayedStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.host.restore("web")
    before = snapshots(stage)

    def fail(*_arguments: object) -> None:
        raise NoSpaceError("The disk is full.")

    with monkeypatch.context() as patch:
        patch.setattr(birth, "establish", fail)
        report = stage.host.fork("web", count=2, memory_policy=SHARE, partial=True)
    assert len(report.failures) == 2
    base = stage.host.get("web").diff_base
    assert snapshots(stage) == before | ({base} if base else set())
    assert stage.host.check_store().whole


@of_all
def test_a_source_that_runs_is_free_while_its_forks_are_made(
    stage: PlayedStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But where its capture is the base of its next diff."""
    stage.host.restore("web")
    establish = birth.establish
    free: list[bool] = []

    def see(store: Store, *arguments: Any) -> None:
        try:
            with locked(store.paths.locks, f"instance-{stage.host.get('web').id}", timeout_s=0):
                free.append(True)
        except LockedError:
            free.append(False)
        establish(store, *arguments)

    monkeypatch.setattr(birth, "establish", see)
    share(stage, 1)
    assert free == [stage.host.get("web").hypervisor is Hypervisor.QEMU]


@of_all
def test_a_fork_of_a_fork_that_never_slept_shares_the_same(stage: PlayedStage) -> None:
    share(stage, 1, start=False)
    share(stage, 1, "web-1")
    first = stage.host.restore("web-1")
    assert mapped(first) == mapped(stage.host.get("web-1-1"))
    clone = stage.host.fork("web-1", "clone").instances[0]
    stage.host.restore("clone")
    assert clone.memory_policy is MemoryPolicy.CLONE
    assert stage.write("clone", WROTE) == WROTE


@of_all
def test_it_wakes_again_from_what_it_shares_when_its_vmm_was_lost(stage: PlayedStage) -> None:
    share(stage, 1)
    stage.kill("web-1")
    assert stage.host.get("web-1").state is State.FAILED
    stage.host.restore("web-1", discard_disk=True)
    assert stage.write("web-1", WROTE) == WROTE
    stage.host.stop("web-1", force=True)
    stage.host.start("web-1")
    assert stage.write("web-1", Words(disk=WROTE.disk)) == Words(disk=WROTE.disk), "it has booted"


@of_all
def test_a_name_given_to_its_sleep_leads_back_to_it(stage: PlayedStage) -> None:
    share(stage, 1, start=False)
    stage.host.snapshot_create("web-1", "as-it-was")
    stage.host.restore("web-1")
    stage.write("web-1", replace(WROTE, register=99))
    stage.host.standby("web-1")
    stage.host.restore("web-1", snapshot="as-it-was")
    assert stage.write("web-1", WROTE) == WROTE


@of_all
def test_a_source_that_wakes_sleeps_and_goes_while_its_forks_are_made_is_not_noticed(
    stage: PlayedStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the making of the forks and their start it does all of that; what they need stays."""
    identified = guest.identified

    def meanwhile(run_dir: Path, record: Any, **options: Any) -> Any:
        if record.name == "web-3":
            stage.host.restore("web")
            stage.host.standby("web")
            stage.host.remove("web")
        return identified(run_dir, record, **options)

    monkeypatch.setattr(guest, "identified", meanwhile)
    forks = share(stage, 4)
    assert not stage.host.exists("web")
    for one in forks:
        assert stage.write(one.name, WROTE) == WROTE
    assert stage.host.check_store().whole


@of_all
def test_a_live_fork_of_a_snapshot_whose_manifest_is_damaged_is_told_to_sleep_which_keeps_its_memory(
    stage: PlayedStage,
) -> None:
    info = stage.host.get("web")
    assert info.snapshot is not None
    share(stage, 1)
    stage.write("web-1", replace(WROTE, register=99))
    flip(Path(info.snapshot.dir) / "manifest.json", 2)
    (found,) = stage.host.snapshot_check(info.snapshot.id)
    told = "ramet rm web; ramet standby web-1 (its memory is kept; if that fails: ramet stop web-1)"
    assert (found.mend or "").endswith(f": {told}")
    slept = stage.host.standby("web-1").snapshot
    assert slept is not None
    assert stage.host.snapshot_check(slept.id)[0].whole
    stage.host.remove("web")
    assert snapshots(stage) == {slept.id}
    stage.host.restore("web-1")
    assert stage.write("web-1", WROTE) == replace(WROTE, register=99)


@of_all
def test_stopped_it_has_no_memory_to_share(stage: PlayedStage) -> None:
    stage.host.stop("web", discard_memory=True)
    with pytest.raises(StateError, match="no memory to share"):
        share(stage, 1)


@of_older_qemu
def test_where_nothing_enforces_it_it_is_refused_before_anything_is_touched(
    stage: PlayedStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    share(stage, 1, start=False)
    monkeypatch.setattr(memfd, "SEALS", 0)
    before = snapshots(stage)
    for source in ("web", f"snapshot:{before.copy().pop()}"):
        with pytest.raises(UnsupportedError, match="nothing would refuse a write") as caught:
            share(stage, 1, source)
        assert caught.value.capability == sharing.CAPABILITY
        assert "a sealed memfd can be written here" in caught.value.why
    with pytest.raises(UnsupportedError):
        stage.host.restore("web-1")
    assert stage.host.get("web-1").state is State.STANDBY
    assert {info.name for info in stage.host.list()} == {"web", "web-1"}
    stage.host.restore("web")
    with pytest.raises(UnsupportedError):
        share(stage, 1)
    assert stage.host.get("web").state is State.RUNNING


@pytest.mark.parametrize("kind", ["read-only", "last-capture"])
def test_where_a_vmm_could_open_the_file_anew_for_writing_it_is_refused(
    stage: PlayedStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its descriptor cannot write; the same user's, or root's, with nothing that confines it, can be had by /proc/self/fd."""
    share(stage, 1, start=False)
    monkeypatch.setattr(sharing, "why_no_vmm_users", lambda _hypervisor: "there are none")
    share(stage, 1)

    def require_refused(why: str) -> None:
        for refused in (lambda: share(stage, 1), lambda: stage.host.restore("web-1")):
            with pytest.raises(UnsupportedError, match="could write what the others map") as caught:
                refused()
            assert caught.value.capability == sharing.CAPABILITY
            assert caught.value.why == why
            assert caught.value.hint is not None

    with monkeypatch.context() as patch:
        patch.setattr(confinement, "why_no_landlock", lambda: "no Landlock")
        require_refused("no Landlock, and its VMMs have no users of their own: there are none")
        patch.setattr(sharing, "why_no_vmm_users", lambda _hypervisor: None)
        share(stage, 1)
    monkeypatch.setenv("RAMET_CONFINEMENT", "off")
    require_refused("there are none")
    assert {info.name for info in stage.host.list()} == {"web", "web-1", "web-2", "web-3"}
    monkeypatch.setenv("RAMET_CONFINEMENT", "on")
    stage.host.restore("web-1")


@of_older_qemu
def test_a_sealed_copy_is_shared_without_confinement_too(stage: PlayedStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAMET_CONFINEMENT", "off")
    assert len(share(stage, 1)) == 1


@of_older_qemu
def test_what_somebody_can_write_is_not_shared(stage: PlayedStage) -> None:
    info = stage.host.get("web")
    assert info.snapshot is not None
    with open(info.snapshot.memory, "r+b"), pytest.raises(ConflictError, match="open for writing"):  # noqa: PTH123
        share(stage, 1)
    assert len(share(stage, 1)) == 1


@of_older_qemu
def test_there_is_one_copy_in_ram_as_long_as_somebody_maps_it(stage: PlayedStage) -> None:
    first, second = share(stage, 2)
    ino = mapped(first)
    stage.host.standby("web-1")
    share(stage, 1, start=False)
    assert mapped(stage.host.restore("web-3" if stage.host.exists("web-3") else "web-1-1")) == ino
    for name in ("web-2", "web-3"):
        stage.host.remove(name, force=True)
    assert mapped(share(stage, 1)[0]) != ino
    assert second.mapped_memory is not None
    assert not Path(second.mapped_memory.path).exists()


@of_older_qemu
def test_a_sleep_keeps_what_the_guest_has_where_the_shared_file_was_damaged_meanwhile(stage: PlayedStage) -> None:
    info = stage.host.get("web")
    assert info.snapshot is not None
    share(stage, 1)
    memory = Path(info.snapshot.memory)
    memory.chmod(0o600)
    memory.write_bytes(bytes(memory.stat().st_size))
    memory.chmod(0o400)
    slept = stage.host.standby("web-1").snapshot
    assert slept is not None
    assert stage.host.snapshot_check(slept.id)[0].whole
    stage.host.restore("web-1")
    assert stage.write("web-1", WROTE) == WROTE


@of_older_qemu
def test_a_copy_that_is_not_what_was_published_is_told_as_memory(stage: PlayedStage) -> None:
    """It has no name but a number of ours."""
    info = stage.host.get("web")
    assert info.snapshot is not None
    share(stage, 1, start=False)
    flip(Path(info.snapshot.memory), 0)
    with pytest.raises(CorruptError, match=r"not what was published\. memory: page 0 changed"):
        stage.host.restore("web-1", verified=True)


@of_older_qemu
def test_du_counts_it_once_at_its_snapshot(stage: PlayedStage) -> None:
    def copies() -> list[int | None]:
        return [use.own_memory_bytes for use in stage.host.du() if use.kind == "snapshot"]

    assert copies() == [None]
    share(stage, 2)
    (taken,) = copies()
    assert taken is not None
    assert 0 < taken <= MIB
    stage.kill("web-2")
    assert copies() == [taken], "as long as one has it"
    stage.kill("web-1")
    assert copies() == [None]


@of_older_qemu
def test_a_copy_in_ram_is_waited_for_as_long_as_it_may_take(
    stage: PlayedStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To be copied, and its first fork to wake, whose agent alone may take a minute and more."""
    waited: list[float] = []

    def wait(directory: Path, key: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> AbstractContextManager[None]:
        waited.append(timeout_s)
        return locked(directory, key, timeout_s=timeout_s)

    monkeypatch.setattr(sharing, "locked", wait)
    share(stage, 1)
    wakes_s = 2 * LOAD_DEADLINE_S + guest.IDENTITY_DEADLINE_S + guest.THAW_DEADLINE_S
    (timeout_s,) = waited
    assert timeout_s >= wakes_s + 32 * 1024 * MIB / (100 * MIB), "32 GiB, at 100 MiB a second"


@of_older_qemu
def test_what_a_vmm_puts_in_its_place_is_not_passed_on(stage: PlayedStage, monkeypatch: pytest.MonkeyPatch) -> None:
    first = share(stage, 1)[0]
    monkeypatch.setattr(copies_in_ram, "opened", lambda *_, **__: None)
    share(stage, 1)
    assert mapped(stage.host.get("web-2")) != mapped(first)


@of_older_qemu
def test_without_room_for_a_copy_in_ram_nothing_is_left(stage: PlayedStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 1)
    with pytest.raises(RoomError, match="to share, and 0 MiB are free"):
        share(stage, 1)
    assert {info.name for info in stage.host.list()} == {"web"}
    assert list(stage.paths.locks.glob("*template*")) == []
