"""A guest's vsock, behind a unix socket that the test plays: refused, reset, late, or answered."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ramet.guests import wire
from ramet.linux.unixsock import listen_in
from ramet.paths import VSOCK_SOCKET
from tests.unit.guests.fake_agent import FakeAgent

Behaviour = Callable[[socket.socket], None]


def hang_up(sock: socket.socket) -> None:
    """As where nobody listens in the guest."""
    take_line(sock)


def reset_after_ok(sock: socket.socket) -> None:
    """As where the transport is reset right after the connection was accepted."""
    accept(sock)
    sock.recv(1)


def swallow_hello(sock: socket.socket) -> None:
    """As where the transport is reset between the hello and its answer: nobody tells the host."""
    accept(sock)
    say_nothing(sock)


def refuse_connection(sock: socket.socket) -> None:
    take_line(sock)
    sock.sendall(b"NO\n")


def say_nothing(sock: socket.socket) -> None:
    while sock.recv(4096):
        pass


def answer(sock: socket.socket) -> None:
    greeted(sock).wait_for_hangup()


def answer_and_be_reset(sock: socket.socket) -> None:
    """As where the transport is reset after the hello was answered, and the first request was sent."""
    greeted(sock).request()


def agree(sock: socket.socket) -> None:
    """Say OK to every request."""
    agent = greeted(sock)
    while True:
        agent.request()
        agent.send(wire.encode(wire.Reply.OK, b""))


def refuse_requests(sock: socket.socket) -> None:
    agent = greeted(sock)
    agent.request()
    agent.send(wire.encode(wire.Reply.ERROR, (2).to_bytes(4, "little") + wire.string("no shell")))
    agent.wait_for_hangup()


def greeted(sock: socket.socket) -> FakeAgent:
    """Accept the connection, and answer the hello."""
    accept(sock)
    agent = FakeAgent(sock)
    agent.greet()
    return agent


def accept(sock: socket.socket) -> None:
    assert take_line(sock) == b"CONNECT 5000\n"
    sock.sendall(b"OK 1073741824\n")


def take_line(sock: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n") and (more := sock.recv(1)):
        line += more
    return line


@contextmanager
def fake_vsock(run_dir: Path, behaviours: Sequence[Behaviour]) -> Iterator[list[str]]:
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
