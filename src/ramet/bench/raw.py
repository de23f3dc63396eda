"""QMP and the agent by hand: as little code as it takes to talk to them."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ramet.closing import Closing
from ramet.errors import GuestError, RejectedError, VmmDiedError, VmmError
from ramet.guests import wire
from ramet.guests.wire import Reply, Request

ANSWER_S = 300.0

PING = wire.encode(Request.PING)
THAW = wire.encode(Request.THAW)


@contextmanager
def vmm_errors(name: str) -> Iterator[None]:
    """Translate what a socket of a VMM may raise.

    Raises:
        VmmError: if it went away, or did not answer within ``ANSWER_S`` seconds.
    """
    try:
        yield
    except OSError as err:
        raise VmmDiedError(f"{name}, woken by hand, does not answer: {err}") from err


class Qmp(Closing):
    """One line out, lines in until the answer. ``close()`` twice is fine."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(ANSWER_S)
        self._sock = sock
        self._lines = sock.makefile("rb")
        self._asked = "(its greeting)"
        self._next("QMP")
        self.command("qmp_capabilities")

    def command(self, name: str, **arguments: object) -> object:
        """Run one command and return its result.

        Raises:
            VmmError: if QEMU refused it or went away.
        """
        wire_arguments = {key.replace("_", "-"): value for key, value in arguments.items()}
        self._asked = json.dumps({"execute": name, "arguments": wire_arguments})
        with vmm_errors("QEMU"):
            self._sock.sendall(self._asked.encode() + b"\n")
        return self._next("return")["return"]

    def send_descriptor(self, name: str, fd: int) -> None:
        """``getfd``: QEMU knows a duplicate of ``fd`` as ``name``."""
        self._asked = json.dumps({"execute": "getfd", "arguments": {"fdname": name}})
        with vmm_errors("QEMU"):
            socket.send_fds(self._sock, [self._asked.encode() + b"\n"], [fd])
        self._next("return")

    def report_migrations(self) -> None:
        """Let ``wait_migration`` work."""
        self.command("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])

    def wait_migration(self) -> None:
        """Until the migration (a load is one) has completed.

        Raises:
            VmmError: if it failed.
        """
        while True:
            message = self._next("event")
            data = message.get("data")
            status = data.get("status") if message["event"] == "MIGRATION" and isinstance(data, dict) else None
            if status == "failed":
                raise VmmError("QEMU's migration failed.")
            if status == "completed":
                return

    def close(self) -> None:
        """Hang up."""
        self._lines.close()
        self._sock.close()

    def _next(self, key: str) -> dict[str, object]:
        while True:
            with vmm_errors("QEMU"):
                line = self._lines.readline()
            if not line:
                raise VmmDiedError("QEMU, woken by hand, went away.")
            message: dict[str, object] = json.loads(line)
            if "error" in message:
                raise RejectedError("QEMU refused a request.", request=self._asked, reply=str(message["error"]))
            if key in message:
                return message


class Agent(Closing):
    """Whatever is asked at once goes out in one piece. ``close()`` twice is fine."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(ANSWER_S)
        self._sock = sock
        epoch = os.urandom(wire.EPOCH_BYTES)
        self._decoder = wire.Decoder(epoch)
        self._unsent = wire.hello(epoch)

    def ask(self, *requests: bytes, until: Reply) -> bytes:
        """Send requests and return the payload of the last answer, which is the first of kind ``until``.

        Raises:
            GuestError: if the agent refused one.
            VmmError: if it went away.
        """
        with vmm_errors("The agent"):
            self._sock.sendall(self._unsent + b"".join(requests))
        self._unsent = b""
        while True:
            with vmm_errors("The agent"):
                data = self._sock.recv(65536)
            if not data:
                raise VmmDiedError("The agent of a guest that was woken by hand went away.")
            for kind, payload in self._decoder.feed(data):
                if kind == Reply.ERROR:
                    raise GuestError(f"The agent of a guest that was woken by hand refused: {payload!r}")
                if kind == until:
                    return payload

    def run(self, argv: Sequence[str], *before: bytes) -> None:
        """Run a command without input to its end, after the requests ``before``.

        Raises:
            GuestError: if it did not end with status 0.
            VmmError: if the agent went away.
        """
        if self.ask(*before, command(argv), until=Reply.EXIT)[:5] != bytes(5):
            raise GuestError(f"In a guest that was woken by hand, {' '.join(argv)!r} failed.")

    def close(self) -> None:
        """Hang up."""
        self._sock.close()


def command(argv: Sequence[str]) -> bytes:
    """The requests for a command without input."""
    request = struct.pack("<IIHH", 0, 0, 0, 0) + wire.string("") + wire.strings(list(argv)) + wire.strings([])
    return wire.encode(Request.EXEC, request) + wire.encode(Request.STDIN)
