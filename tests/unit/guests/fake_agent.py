"""The other end of a session, played by a test: an agent that answers as it is told, or lies."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

from ramet.guests import wire
from ramet.guests.client import AgentClient
from ramet.guests.stream import AgentStream
from ramet.guests.wire import Reply

STARTED = wire.encode(Reply.STARTED, (77).to_bytes(4, "little"))
DEADLINE_S = 10.0


class FakeAgent:
    """What a test's agent speaks through. Sending to a client that has hung up ends it, and is no error."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._received = bytearray()
        self.epoch = b""

    def greet(self) -> None:
        """Take the client's hello and answer it."""
        while (at := self._received.find(wire.MAGIC)) < 0 or len(self._received) < at + wire.HELLO_BYTES:
            self._receive()
        self.epoch = bytes(self._received[at + len(wire.MAGIC) + 1 : at + wire.HELLO_BYTES])
        del self._received[: at + wire.HELLO_BYTES]
        self.send(wire.hello(self.epoch))

    def request(self) -> tuple[int, bytes]:
        """The client's next message (one frame)."""
        while True:
            if len(self._received) >= wire.HEADER_BYTES:
                end = wire.HEADER_BYTES + int.from_bytes(self._received[1:4], "little")
                if len(self._received) >= end:
                    kind, payload = self._received[0], bytes(self._received[wire.HEADER_BYTES : end])
                    del self._received[:end]
                    return kind, payload
            self._receive()

    def send(self, *pieces: bytes) -> None:
        self._sock.sendall(b"".join(pieces))

    def wait_for_hangup(self) -> None:
        while self._sock.recv(65536):
            pass

    def is_left_within(self, timeout_s: float) -> bool:
        """Whether the client hangs up, or goes on sending, in this time."""
        return bool(select.select([self._sock], [], [], timeout_s)[0]) and not self._sock.recv(65536)

    def hears_within(self, timeout_s: float) -> bool:
        """Whether the client sends anything, or hangs up, in this time."""
        return bool(select.select([self._sock], [], [], timeout_s)[0])

    def _receive(self) -> None:
        data = self._sock.recv(65536)
        if not data:
            raise ConnectionResetError
        self._received += data


@contextmanager
def session(behave: Callable[[FakeAgent], None], *, probes: bool = False) -> Iterator[AgentClient]:
    """A client whose agent does what ``behave`` does, in a thread that has ended after the block."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(DEADLINE_S)
    ended_well = threading.Event()

    def run() -> None:
        with closing(theirs):
            with suppress(BrokenPipeError, ConnectionResetError):
                behave(FakeAgent(theirs))
            ended_well.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        with AgentClient(AgentStream(ours, probes=probes)) as client:
            yield client
    finally:
        thread.join(2 * DEADLINE_S)
    assert not thread.is_alive()
    assert ended_well.is_set()
