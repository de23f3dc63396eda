"""Rollbacks that fail: what the store is left with. Found by a random sequence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from ramet.errors import GuestError
from ramet.instances import guest
from ramet.model import Hypervisor, State
from tests.capabilities import requires
from tests.model.played_stage import PlayedStage

pytestmark = [requires("gcc"), pytest.mark.parametrize("hypervisor", Hypervisor)]


@pytest.fixture
def stage(in_memory: Path, program: Path, played: None, hypervisor: Hypervisor) -> Iterator[PlayedStage]:
    """With ``web``, which was put to sleep once and runs again; a snapshot of it from before has a name."""
    stage = PlayedStage(in_memory, program, mapped_read_only=True)
    stage.create("web", hypervisor)
    stage.host.snapshot_create("web", "before-upgrade")
    stage.host.standby("web")
    stage.host.restore("web")
    yield stage
    stage.close()


def refuse(*_: object, **__: object) -> NoReturn:
    raise GuestError("The guest does not take its identity.")


def snapshots_after_rolling_back_in_vain(
    stage: PlayedStage, snapshot: str, monkeypatch: pytest.MonkeyPatch
) -> set[str]:
    """The ids of what is left."""
    monkeypatch.setattr(guest, "identified", refuse)
    with pytest.raises(GuestError):
        stage.host.restore("web", snapshot=snapshot, discard_memory=True, discard_disk=True)
    assert stage.host.get("web").state is State.STOPPED
    return {snapshot.id for snapshot in stage.host.snapshots()}


def test_what_the_live_vm_had_woken_from_goes_with_it(stage: PlayedStage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing refers to it any more, and nobody could know its id."""
    named = stage.host.snapshot_get("before-upgrade").id
    assert snapshots_after_rolling_back_in_vain(stage, "before-upgrade", monkeypatch) == {named}


def test_what_it_was_to_go_back_to_stays(stage: PlayedStage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even without a name: it is all that is left of the VM that was given up for it."""
    named = stage.host.snapshot_get("before-upgrade").id
    woken_from = stage.host.get("web").mapped_snapshot
    assert woken_from is not None
    assert snapshots_after_rolling_back_in_vain(stage, woken_from, monkeypatch) == {named, woken_from}
    stage.host.snapshot_remove(woken_from)
