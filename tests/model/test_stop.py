"""A guest that does not shut down in time: what is said of it is true, and what to do works."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from ramet.errors import GuestTimeoutError
from ramet.guests.client import AgentClient
from ramet.instances import live_files
from ramet.model import Hypervisor, State
from ramet.paths import InstancePaths
from tests.capabilities import requires
from tests.model.played_stage import PlayedStage

pytestmark = [requires("gcc"), pytest.mark.parametrize("hypervisor", Hypervisor)]


@pytest.fixture
def stage(in_memory: Path, program: Path, played: None, hypervisor: Hypervisor) -> Iterator[PlayedStage]:
    """With ``web``, which runs."""
    stage = PlayedStage(in_memory, program, mapped_read_only=True)
    stage.create("web", hypervisor)
    yield stage
    stage.close()


@pytest.mark.parametrize("paused", [False, True])
def test_a_guest_that_was_asked_and_is_still_up_may_yet_go_down(
    stage: PlayedStage, monkeypatch: pytest.MonkeyPatch, paused: bool
) -> None:
    monkeypatch.setattr(AgentClient, "shutdown", lambda _agent: None)
    if paused:
        stage.host.pause("web")
    with pytest.raises(GuestTimeoutError, match=r"was asked to shut down and is still up 0\.1 s later") as caught:
        stage.host.stop("web", timeout_s=0.1)
    assert ("not paused any more" in caught.value.message) == paused
    assert "`ramet stop --force web`" in str(caught.value.hint)
    record = stage.host.get("web")
    assert record.state is State.RUNNING
    assert '"pending":null' in (stage.run_dir("web").parent / "instance.json").read_text().replace(" ", "")
    stage.told("web", "read")
    stage.power_off("web")
    assert stage.host.get("web").state is State.STOPPED, "it has gone down after all"


def test_force_kills_it(stage: PlayedStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AgentClient, "shutdown", lambda _agent: None)
    assert stage.host.stop("web", timeout_s=0.1, force=True).state is State.STOPPED


@pytest.mark.parametrize("how", ["by stop --force", "by itself"])
def test_the_disk_of_one_that_has_ended_is_synced_while_its_record_still_has_its_sleep(
    stage: PlayedStage, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Of a copy nothing may be on the disk yet, and the snapshot is deleted once the record says stopped."""
    states: list[str] = []

    def sync_disk(paths: InstancePaths) -> None:
        states.append(json.loads(paths.record.read_text())["state"])

    monkeypatch.setattr(live_files, "sync_disk", sync_disk)
    if how == "by itself":
        stage.power_off("web")
        stage.host.start("web")
    else:
        monkeypatch.setattr(AgentClient, "shutdown", lambda _agent: None)
        stage.host.stop("web", timeout_s=0.1, force=True)
    assert states == ["running"]


def test_a_guest_that_does_not_take_the_request_runs_on(stage: PlayedStage, monkeypatch: pytest.MonkeyPatch) -> None:
    def unheard(_agent: AgentClient) -> NoReturn:
        raise GuestTimeoutError("The agent did not answer.", hint="Look.")

    monkeypatch.setattr(AgentClient, "shutdown", unheard)
    with pytest.raises(GuestTimeoutError, match=r"did not take the request to shut down: The agent did not") as caught:
        stage.host.stop("web", timeout_s=0.1)
    assert "`ramet stop --force web`" in str(caught.value.hint)
    assert stage.host.get("web").state is State.RUNNING
    stage.told("web", "read")
