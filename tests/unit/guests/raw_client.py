"""A client that sends what it likes, and sees what it gets."""

from __future__ import annotations

import socket
import struct

import pytest

from ramet.guests import wire
from ramet.guests.wire import GuestRefusedError, Request
from tests.unit.guests.native_agent import DEADLINE_S

EPOCH = bytes(range(16))


class Raw:
    """One side of a stream."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(DEADLINE_S)
        self.decoder = wire.Decoder(EPOCH)
        self.messages: list[tuple[int, bytes]] = []

    def send(self, *pieces: bytes) -> None:
        self.sock.sendall(b"".join(pieces))

    def receive(self) -> tuple[int, bytes]:
        while not self.messages:
            data = self.sock.recv(65536)
            assert data, "the agent hung up"
            self.messages += self.decoder.feed(data)
        return self.messages.pop(0)

    def hangs_up(self) -> bool:
        """Whether the agent ends the connection; what it says before that is dropped."""
        try:
            while self.sock.recv(65536):
                pass
        except ConnectionResetError:
            pass
        except TimeoutError:
            return False
        return True


def exec_message(*argv: str, flags: int = 0) -> bytes:
    """An exec request without environment, directory or time limit."""
    request = struct.pack("<IIHH", flags, 0, 0, 0) + wire.string("") + wire.strings(list(argv)) + wire.strings([])
    return wire.encode(Request.EXEC, request)


def refusal(payload: bytes) -> GuestRefusedError:
    """What an ERROR reply says."""
    with pytest.raises(GuestRefusedError) as caught:
        wire.refuse(payload)
    return caught.value
