"""Sessions over a vsock that is refused, reset, late, or not there."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ramet.errors import GuestTimeoutError, VmmDiedError
from ramet.guests import sessions, vsock
from ramet.guests.client import AgentClient
from tests.unit.guests.fake_vsock import (
    Behaviour,
    answer,
    fake_vsock,
    hang_up,
    refuse_connection,
    reset_after_ok,
    say_nothing,
    swallow_hello,
)


@pytest.mark.parametrize(
    "first", [[], [hang_up], [hang_up] * 3, [reset_after_ok], [reset_after_ok, hang_up], [refuse_connection]]
)
def test_a_session_is_open_only_once_the_agent_has_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: list[Behaviour]
) -> None:
    monkeypatch.setattr(sessions, "FIRST_TRY_S", 60.0)  # a late answer is no reason for one more
    with fake_vsock(tmp_path, [*first, answer]) as seen, AgentClient.open(tmp_path, deadline_s=60):
        assert seen == [behaviour.__name__ for behaviour in [*first, answer]]


def test_a_hello_that_is_lost_is_said_again_on_another_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "FIRST_TRY_S", 0.1)
    with (
        fake_vsock(tmp_path, [swallow_hello, swallow_hello, answer]) as seen,
        AgentClient.open(tmp_path, deadline_s=60),
    ):
        assert seen[:3] == ["swallow_hello", "swallow_hello", "answer"]  # if that is late, there are more


@pytest.mark.parametrize("behaviour", [hang_up, refuse_connection, say_nothing, swallow_hello])
def test_a_guest_that_never_accepts_is_given_up_in_time(tmp_path: Path, behaviour: Behaviour) -> None:
    began = time.monotonic()
    with fake_vsock(tmp_path, [behaviour]), pytest.raises(GuestTimeoutError, match=r"within 0\.3 s"):
        AgentClient.open(tmp_path, deadline_s=0.3)
    assert time.monotonic() - began < 30


def test_a_transport_that_is_reset_again_and_again_is_given_up_in_time(tmp_path: Path) -> None:
    """And without a rush: an agent that has no room for one more session does the same."""
    with fake_vsock(tmp_path, [reset_after_ok]) as seen, pytest.raises(GuestTimeoutError, match="within 2 s"):
        AgentClient.open(tmp_path, deadline_s=2.0)
    assert 1 < len(seen) <= 2.0 / vsock.RETRY_S + 1


def test_a_vmm_that_is_gone_is_told_from_a_guest_that_does_not_answer(tmp_path: Path) -> None:
    with fake_vsock(tmp_path, [answer]):
        assert vsock.is_there(tmp_path)
    with pytest.raises(VmmDiedError, match="The VMM is gone"):
        vsock.connect(tmp_path, deadline_s=1.0)


def test_a_run_directory_without_one_is_not_asked_for_it(tmp_path: Path) -> None:
    assert not vsock.is_there(tmp_path)
