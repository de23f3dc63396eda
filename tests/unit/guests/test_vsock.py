"""The guest's vsock, behind a unix socket that the test plays: refused, reset, late, or with nobody there."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ramet.errors import GuestTimeoutError, VmmDiedError
from ramet.guests import sessions, vsock
from ramet.guests.client import AgentClient
from ramet.linux.unixsock import listen_in
from ramet.paths import VSOCK_SOCKET
from tests.unit.guests.fake_agent import FakeAgent

Behaviour = Callable[[socket.socket], None]


def hang_up(sock: socket.socket) -> None:
    """As where nobody listens in the guest."""
    take_line(sock)


def reset_after_ok(sock: socket.socket) -> None:
    """As where the transport is reset right after the connection was accepted."""
    take_line(sock)
    sock.sendall(b"OK 1073741824\n")
    sock.recv(1)


def swallow_hello(sock: socket.socket) -> None:
    """As where the transport is reset between the hello and its answer: nobody tells the host."""
    take_line(sock)
    sock.sendall(b"OK 1073741824\n")
    say_nothing(sock)


def refuse(sock: socket.socket) -> None:
    take_line(sock)
    sock.sendall(b"NO\n")


def say_nothing(sock: socket.socket) -> None:
    while sock.recv(4096):
        pass


def answer(sock: socket.socket) -> None:
    assert take_line(sock) == b"CONNECT 5000\n"
    sock.sendall(b"OK 1073741824\n")
    agent = FakeAgent(sock)
    agent.greet()
    agent.wait_for_hangup()


def take_line(sock: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n") and (more := sock.recv(1)):
        line += more
    return line


@contextmanager
def guest(run_dir: Path, behaviours: Sequence[Behaviour]) -> Iterator[list[str]]:
    """Each connection behaves as the next in turn, the last one for ever; yields the names of those that were."""
    seen: list[str] = []
    ended = threading.Event()
    with listen_in(run_dir, VSOCK_SOCKET) as server:
        server.settimeout(0.05)

        def behave(sock: socket.socket, behaviour: Behaviour) -> None:
            with sock, suppress(TimeoutError, OSError):
                sock.settimeout(10)
                behaviour(sock)

        def serve() -> None:
            while not ended.is_set():
                with suppress(TimeoutError):
                    behaviour = behaviours[min(len(seen), len(behaviours) - 1)]
                    threads.append(threading.Thread(target=behave, args=(server.accept()[0], behaviour)))
                    seen.append(behaviour.__name__)
                    threads[-1].start()

        threads = [threading.Thread(target=serve)]
        threads[0].start()
        try:
            yield seen
        finally:
            ended.set()
            for thread in threads:
                thread.join(20)
        assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("first", [[], [hang_up], [hang_up] * 3, [reset_after_ok], [reset_after_ok, hang_up], [refuse]])
def test_a_session_is_open_only_once_the_agent_has_answered(tmp_path: Path, first: list[Behaviour]) -> None:
    with guest(tmp_path, [*first, answer]) as seen, AgentClient.open(tmp_path, deadline_s=10):
        assert seen == [behaviour.__name__ for behaviour in [*first, answer]]


def test_a_hello_that_is_lost_is_said_again_on_another_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "FIRST_TRY_S", 0.1)
    with guest(tmp_path, [swallow_hello, swallow_hello, answer]) as seen, AgentClient.open(tmp_path, deadline_s=10):
        assert seen == ["swallow_hello", "swallow_hello", "answer"]


@pytest.mark.parametrize("behaviour", [hang_up, refuse, say_nothing, swallow_hello])
def test_a_guest_that_never_accepts_is_given_up_in_time(tmp_path: Path, behaviour: Behaviour) -> None:
    began = time.monotonic()
    with guest(tmp_path, [behaviour]), pytest.raises(GuestTimeoutError, match=r"within 0\.3 s"):
        AgentClient.open(tmp_path, deadline_s=0.3)
    assert time.monotonic() - began < 5


def test_a_transport_that_is_reset_again_and_again_is_given_up_in_time(tmp_path: Path) -> None:
    """And without a rush: an agent that has no room for one more session does the same."""
    with guest(tmp_path, [reset_after_ok]) as seen, pytest.raises(GuestTimeoutError, match=r"within 0\.3 s"):
        AgentClient.open(tmp_path, deadline_s=0.3)
    assert 1 < len(seen) <= 0.3 / vsock.RETRY_S + 1


def test_a_vmm_that_is_gone_is_told_from_a_guest_that_does_not_answer(tmp_path: Path) -> None:
    with guest(tmp_path, [answer]):
        assert vsock.is_there(tmp_path)
    with pytest.raises(VmmDiedError, match="The VMM is gone"):
        vsock.connect(tmp_path, deadline_s=1.0)


def test_a_run_directory_without_one_is_not_asked_for_it(tmp_path: Path) -> None:
    assert not vsock.is_there(tmp_path)
