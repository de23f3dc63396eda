"""What is asked of a guest around a capture and a restore, where a session is lost that it had answered."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from ramet.errors import GuestTimeoutError, VmmDiedError
from ramet.guests.client import AgentClient
from ramet.guests.stream import SessionLostError
from ramet.instances import guest, observe, restore
from ramet.linux.unixsock import listen_in
from ramet.model import State, VmmProcess
from ramet.paths import VSOCK_SOCKET
from ramet.snapshots import manifest as manifests
from tests.unit.guests.fake_vsock import agree, answer_and_be_reset, fake_vsock, greeted, refuse_requests
from tests.unit.instances.parked import Guests, failing
from tests.unit.instances.place import Place
from tests.unit.snapshots.published import record


def be_reset_late(sock: socket.socket) -> None:
    """Take the request, and lose the session just before its time is over."""
    greeted(sock).request()
    time.sleep(0.45)


def test_an_identity_is_given_anew_where_its_session_is_lost(tmp_path: Path) -> None:
    with (
        fake_vsock(tmp_path, [answer_and_be_reset, answer_and_be_reset, agree]) as seen,
        guest.identified(tmp_path, record(), generation=2) as agent,
    ):
        assert seen == ["answer_and_be_reset", "answer_and_be_reset", "agree"]
        agent.thaw()


def test_a_guest_is_thawed_anew_where_the_session_is_lost(tmp_path: Path) -> None:
    with fake_vsock(tmp_path, [answer_and_be_reset, agree]) as seen:
        guest.thaw(tmp_path)
    assert seen == ["answer_and_be_reset", "agree"]


def test_a_thaw_goes_on_in_another_session(tmp_path: Path) -> None:
    with fake_vsock(tmp_path, [answer_and_be_reset, agree]) as seen, AgentClient.open(tmp_path) as agent:
        guest.thaw_by(agent, tmp_path)
        assert seen == ["answer_and_be_reset", "agree"]


@pytest.mark.usefixtures("guests")
def test_a_restore_whose_thaw_is_lost_says_it_again(
    place: Place, alive: VmmProcess, guests: Guests, monkeypatch: pytest.MonkeyPatch
) -> None:
    guests.on_thaw[place.record.id] = failing(SessionLostError("Its vsock was reset."))
    thawed: list[Path] = []
    monkeypatch.setattr(guest, "thaw", lambda run_dir, **_: thawed.append(run_dir))
    with observe.exclusive(place.store, "web") as instance:
        instance.change(vmm=alive)
        restore.let_run(instance, manifests.load(place.snapshot), None)
    assert thawed == [place.paths.run]
    assert place.store.read(place.record.id).state is State.RUNNING


def test_a_quiesce_whose_session_is_lost_is_thawed_and_said_again(tmp_path: Path) -> None:
    with fake_vsock(tmp_path, [answer_and_be_reset, agree, agree]) as seen:
        guest.quiesce(tmp_path)
    assert seen == ["answer_and_be_reset", "agree", "agree"]


def test_a_rehearsal_goes_on_in_another_session(tmp_path: Path) -> None:
    with fake_vsock(tmp_path, [answer_and_be_reset, refuse_requests]) as seen, AgentClient.open(tmp_path) as agent:
        guest.rehearse(agent, tmp_path)
    assert seen == ["answer_and_be_reset", "refuse_requests"]


def test_what_is_asked_again_ends_in_twice_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with a guest that loses each session at the last moment."""
    monkeypatch.setattr(guest, "SESSIONS_MAX", 100)
    with fake_vsock(tmp_path, [be_reset_late]):
        began = time.monotonic()
        with pytest.raises((VmmDiedError, GuestTimeoutError)):
            guest.thaw(tmp_path, attempt_s=0.5)
        assert time.monotonic() - began < 10


def test_sessions_that_are_lost_time_and_again_are_told(tmp_path: Path) -> None:
    with (
        fake_vsock(tmp_path, [answer_and_be_reset]) as seen,
        pytest.raises(VmmDiedError, match="connection to the guest"),
    ):
        guest.thaw(tmp_path)
    assert len(seen) == guest.SESSIONS_MAX


def test_a_vmm_that_is_gone_is_not_asked_again(tmp_path: Path) -> None:
    with fake_vsock(tmp_path, [answer_and_be_reset]) as seen:
        agent = AgentClient.open(tmp_path)
        (tmp_path / VSOCK_SOCKET).unlink()
        listen_in(tmp_path, VSOCK_SOCKET).close()
        with agent, pytest.raises(VmmDiedError, match="VMM is gone"):
            guest.thaw_by(agent, tmp_path)
    assert seen == ["answer_and_be_reset"]
