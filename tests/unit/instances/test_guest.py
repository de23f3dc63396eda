"""What is asked of a guest around a capture and a restore, where a session is lost that it had answered."""

from __future__ import annotations

from pathlib import Path

import pytest

from ramet.errors import VmmDiedError
from ramet.guests.client import AgentClient
from ramet.instances import guest
from ramet.linux.unixsock import listen_in
from ramet.paths import VSOCK_SOCKET
from tests.unit.guests.played_vsock import agree, answer_and_be_reset
from tests.unit.guests.played_vsock import guest as played
from tests.unit.snapshots.published import record


def test_an_identity_is_given_anew_where_its_session_is_lost(tmp_path: Path) -> None:
    with (
        played(tmp_path, [answer_and_be_reset, answer_and_be_reset, agree]) as seen,
        guest.identified(tmp_path, record(), generation=2) as agent,
    ):
        assert seen == ["answer_and_be_reset", "answer_and_be_reset", "agree"]
        agent.thaw()


def test_a_guest_is_thawed_anew_where_the_session_is_lost(tmp_path: Path) -> None:
    with played(tmp_path, [answer_and_be_reset, agree]) as seen:
        guest.thaw(tmp_path)
    assert seen == ["answer_and_be_reset", "agree"]


def test_a_thaw_goes_on_in_another_session(tmp_path: Path) -> None:
    with played(tmp_path, [answer_and_be_reset, agree]) as seen, AgentClient.open(tmp_path) as agent:
        guest.thaw_by(agent, tmp_path)
        assert seen == ["answer_and_be_reset", "agree"]


def test_sessions_that_are_lost_time_and_again_are_told(tmp_path: Path) -> None:
    with played(tmp_path, [answer_and_be_reset]) as seen, pytest.raises(VmmDiedError, match="connection to the guest"):
        guest.thaw(tmp_path)
    assert len(seen) == guest.SESSIONS_MAX


def test_a_vmm_that_is_gone_is_not_asked_again(tmp_path: Path) -> None:
    with played(tmp_path, [answer_and_be_reset]) as seen:
        agent = AgentClient.open(tmp_path)
        (tmp_path / VSOCK_SOCKET).unlink()
        listen_in(tmp_path, VSOCK_SOCKET).close()
        with agent, pytest.raises(VmmDiedError, match="VMM is gone"):
            guest.thaw_by(agent, tmp_path)
    assert seen == ["answer_and_be_reset"]
