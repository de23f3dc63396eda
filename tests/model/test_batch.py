"""Many forks by one command: all or nothing, or those that can be; and how many fit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ramet.errors import GuestError, HostError, RametError, RoomError
from ramet.instances import birth, delete, guest, observe, room
from ramet.instances.context import Store
from ramet.model import MIB, Hypervisor, InstanceRecord, State
from tests.capabilities import requires
from tests.model.played_stage import PlayedStage

pytestmark = [requires("gcc"), pytest.mark.parametrize("hypervisor", Hypervisor)]
COUNT = 6
first_middle_or_last = pytest.mark.parametrize("refused", ["web-1", "web-4", f"web-{COUNT}"])


@pytest.fixture
def stage(in_memory: Path, program: Path, played: None, hypervisor: Hypervisor) -> Iterator[PlayedStage]:
    """With ``web``, asleep."""
    stage = PlayedStage(in_memory, program, mapped_read_only=True)
    stage.create("web", hypervisor)
    stage.host.standby("web")
    yield stage
    stage.close()


def names(stage: PlayedStage) -> dict[str, State]:
    return {info.name: info.state for info in stage.host.list() if info.name != "web"}


def refuse_some(monkeypatch: pytest.MonkeyPatch, *refused: str) -> None:
    """The guests of these forks take no identity."""
    identified = guest.identified

    def identify(run_dir: Path, record: Any, **options: Any) -> Any:
        if record.name in refused:
            raise GuestError(f"The guest of {record.name} does not take its identity.")
        return identified(run_dir, record, **options)

    monkeypatch.setattr(guest, "identified", identify)


def let_fit(monkeypatch: pytest.MonkeyPatch, more: int) -> None:
    """So many more forks have room in memory."""
    each = 10 * MIB
    found = room.Room(
        memory_bytes=room.KEPT_BYTES + more * each + MIB, memory_each=each, disk_bytes=1 << 40, disk_each=0
    )
    monkeypatch.setattr(room, "look", lambda *_: found)


@pytest.mark.parametrize("source", [State.STANDBY, State.RUNNING, State.STOPPED])
def test_all_run_and_each_is_told(stage: PlayedStage, source: State) -> None:
    if source is not State.STANDBY:
        stage.host.restore("web")
    if source is State.STOPPED:
        stage.host.stop("web", force=True)
    told: list[tuple[str, RametError | None]] = []
    report = stage.host.fork("web", count=COUNT, start=True, on_result=lambda *one: told.append(one))
    wanted = [f"web-{number}" for number in range(1, COUNT + 1)]
    assert [info.name for info in report.instances] == wanted
    assert names(stage) == dict.fromkeys(wanted, State.RUNNING)
    assert sorted(told) == [(name, None) for name in wanted]
    assert stage.host.get("web").state is source
    assert stage.host.check_store().whole


def test_the_source_is_free_while_its_forks_are_made(stage: PlayedStage, hypervisor: Hypervisor) -> None:
    """Firecracker's next diff is relative to the capture that they are made of: there it is locked to the end."""
    stage.host.restore("web")
    seen = []

    def told(name: str, error: RametError | None) -> None:
        assert error is None
        seen.append(name)
        if len(seen) == 1 and hypervisor is Hypervisor.QEMU:
            with observe.exclusive(Store(stage.host.home), "web", timeout_s=0):
                pass
            stage.host.standby("web")

    stage.host.fork("web", count=COUNT, on_result=told)
    assert len(seen) == COUNT
    assert names(stage) == dict.fromkeys(seen, State.STANDBY)
    assert stage.host.check_store().whole


@first_middle_or_last
def test_if_one_does_not_come_up_none_is_left(
    stage: PlayedStage, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    refuse_some(monkeypatch, refused)
    with pytest.raises(GuestError, match=refused):
        stage.host.fork("web", count=COUNT, start=True)
    assert names(stage) == {}
    assert stage.host.check_store().whole


@first_middle_or_last
def test_with_partial_the_others_stay_and_it_is_gone_and_told(
    stage: PlayedStage, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    refuse_some(monkeypatch, refused)
    told: dict[str, RametError | None] = {}
    report = stage.host.fork("web", count=COUNT, start=True, partial=True, on_result=told.__setitem__)
    assert len(report.instances) == COUNT - 1
    assert refused not in names(stage)
    assert set(names(stage).values()) == {State.RUNNING}
    ((name, code, message),) = [(one.name, one.code, one.message) for one in report.failures]
    assert (name, code) == (refused, GuestError.code)
    assert refused in message
    assert isinstance(told.pop(refused), GuestError)
    assert told == dict.fromkeys(names(stage))
    assert stage.host.check_store().whole


@first_middle_or_last
def test_so_it_is_of_one_that_cannot_be_made(stage: PlayedStage, monkeypatch: pytest.MonkeyPatch, refused: str) -> None:
    establish = birth.establish

    def refuse(store: Store, work: Path, record: InstanceRecord) -> None:
        if record.name == refused:
            raise HostError("It cannot be made.")
        establish(store, work, record)

    monkeypatch.setattr(birth, "establish", refuse)
    report = stage.host.fork("web", count=COUNT, start=True, partial=True)
    assert [one.name for one in report.failures] == [refused]
    assert set(names(stage).values()) == {State.RUNNING}
    assert len(names(stage)) == COUNT - 1
    assert stage.host.check_store().whole


def test_one_that_failed_and_cannot_be_removed_again_says_so(
    stage: PlayedStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_some(monkeypatch, "web-2", "web-4")
    remove = delete.remove

    def refuse(store: Store, name: str, *, force: bool) -> None:
        if store.read(name).name == "web-4":
            raise HostError("Its VMM does not end.")
        remove(store, name, force=force)

    monkeypatch.setattr("ramet.instances.batch.remove", refuse)
    report = stage.host.fork("web", count=COUNT, start=True, partial=True)
    removed, left = sorted(report.failures, key=lambda one: one.name)
    assert (removed.name, removed.left_id, removed.left_why) == ("web-2", None, None)
    assert (left.name, left.left_why) == ("web-4", "Its VMM does not end.")
    assert "web-4" not in {info.name for info in report.instances}
    assert left.left_id == stage.host.get("web-4").id
    stage.host.remove(left.left_id, force=True)
    assert len(names(stage)) == COUNT - 2
    assert stage.host.check_store().whole


def test_fewer_that_fit_than_were_asked_for_are_none(stage: PlayedStage, monkeypatch: pytest.MonkeyPatch) -> None:
    let_fit(monkeypatch, more=2)
    with pytest.raises(RoomError, match=f"room for 3 of {COUNT} forks: 10.0 MiB of memory each") as caught:
        stage.host.fork("web", count=COUNT, start=True)
    assert (caught.value.fits, caught.value.wanted) == (3, COUNT)
    assert names(stage) == {}


def test_with_partial_they_are_made(stage: PlayedStage, monkeypatch: pytest.MonkeyPatch) -> None:
    let_fit(monkeypatch, more=2)
    report = stage.host.fork("web", count=COUNT, start=True, partial=True)
    assert names(stage) == dict.fromkeys(["web-1", "web-2", "web-3"], State.RUNNING)
    assert [one.name for one in report.failures] == ["web-4", "web-5", "web-6"]
    assert {one.exit_status for one in report.failures} == {RoomError.exit_status}


def test_just_as_many_as_fit_are_made(stage: PlayedStage, monkeypatch: pytest.MonkeyPatch) -> None:
    let_fit(monkeypatch, more=COUNT - 1)
    assert len(stage.host.fork("web", count=COUNT, start=True).instances) == COUNT
    let_fit(monkeypatch, more=0)
    assert len(stage.host.fork("web", count=1, start=True).instances) == 1, "one is not counted"


def test_what_is_no_error_of_ours_leaves_none_either(stage: PlayedStage, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_name: str, _error: RametError | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage.host.fork("web", count=COUNT, start=True, on_result=interrupt)
    assert names(stage) == {}
    assert stage.host.check_store().whole
