"""The agents of all guests that are played: one thread that answers on their sockets, in the real protocol."""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import threading
from contextlib import suppress
from dataclasses import asdict

from ramet.guests import wire
from ramet.guests.wire import Reader, Reply, Request
from ramet.linux.unixsock import listen_in
from ramet.paths import AGENT_PORTS
from tests.model.machine import Machine, words_of

BUSY = 75
"""The status of a command whose workload is frozen: a real one would not return."""


class Agents:
    """Listens for any number of machines; ``close`` ends the thread."""

    def __init__(self) -> None:
        self.refuse_next_identity = False
        """Told so, a guest does not take the identity that it is given: it must not be let run."""
        self._epoll = select.epoll()
        self._listening: dict[int, tuple[socket.socket, Machine]] = {}
        self._sessions: dict[int, _Session] = {}
        self.error: BaseException | None = None
        """What has ended the thread before its time: the sessions die of it, and the test says so."""
        self._wake, self._woken = os.pipe()
        self._epoll.register(self._wake, select.EPOLLIN)
        self._thread = threading.Thread(target=self._serve, name="agents", daemon=True)
        self._thread.start()

    def close(self) -> None:
        os.write(self._woken, b"x")
        self._thread.join(10)
        for fd in (self._wake, self._woken):
            os.close(fd)
        self._epoll.close()

    def listen(self, machine: Machine) -> None:
        """One socket under all eight names."""
        run_dir = machine.spec.run_dir
        sock = listen_in(run_dir, "agent0.sock")
        for number in range(1, AGENT_PORTS):
            path = run_dir / f"agent{number}.sock"
            path.unlink(missing_ok=True)
            path.hardlink_to(run_dir / "agent0.sock")
        self._listening[sock.fileno()] = (sock, machine)
        self._epoll.register(sock, select.EPOLLIN)

    def hang_up(self, machine: Machine) -> None:
        for fd, (sock, whose) in list(self._listening.items()):
            if whose is machine:
                del self._listening[fd]
                sock.close()  # epoll forgets it too

    def _serve(self) -> None:
        try:
            self._answer_all()
        except BaseException as err:
            self.error = err
            raise
        finally:
            for sock in [session.sock for session in self._sessions.values()] + [
                sock for sock, _ in self._listening.values()
            ]:
                sock.close()

    def _answer_all(self) -> None:
        while True:
            for fd, _ in self._epoll.poll():
                if fd == self._wake:
                    return
                if fd in self._listening:
                    self._accept(*self._listening[fd])
                elif fd in self._sessions and not self._sessions[fd].answer():
                    self._epoll.unregister(fd)
                    self._sessions.pop(fd).sock.close()

    def _accept(self, listening: socket.socket, machine: Machine) -> None:
        with suppress(OSError):  # it was closed meanwhile
            sock, _ = listening.accept()
            self._sessions[sock.fileno()] = _Session(sock, machine, self)
            self._epoll.register(sock, select.EPOLLIN)


class _Session:
    def __init__(self, sock: socket.socket, machine: Machine, agents: Agents) -> None:
        self.sock = sock
        self._agents = agents
        self._machine = machine
        self._received = bytearray()
        self._greeted = False

    def answer(self) -> bool:
        """Answer what has arrived; whether the session goes on."""
        try:
            data = self.sock.recv(65536)
            if not data or not self._machine.is_alive() or not self._machine.vcpus_run:
                return False
            self._received += data
            if not self._greeted and not self._greet():
                return True
            while (request := self._next()) is not None:
                kind, payload = request
                self.sock.sendall(self._reply(kind, payload))
                if kind == Request.SHUTDOWN or (kind == Request.EXEC and _argv(payload) == ["poweroff"]):
                    self._machine.power_off()
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def _greet(self) -> bool:
        if len(self._received) < wire.HELLO_BYTES:
            return False
        epoch = bytes(self._received[len(wire.MAGIC) + 1 : wire.HELLO_BYTES])
        del self._received[: wire.HELLO_BYTES]
        self.sock.sendall(wire.hello(epoch))
        self._greeted = True
        return True

    def _next(self) -> tuple[int, bytes] | None:
        if len(self._received) < wire.HEADER_BYTES:
            return None
        end = wire.HEADER_BYTES + int.from_bytes(self._received[1:4], "little")
        if len(self._received) < end:
            return None
        kind, payload = self._received[0], bytes(self._received[wire.HEADER_BYTES : end])
        assert not kind & wire.MORE, "no request of these tests takes two frames"
        del self._received[:end]
        return kind, payload

    def _reply(self, kind: int, payload: bytes) -> bytes:
        machine = self._machine
        if kind == Request.EXEC:
            status, said = self._execute(_argv(payload))
            exit_message = b"\0" + status.to_bytes(4, "little") + b"\0"
            return (
                wire.encode(Reply.STARTED, (77).to_bytes(4, "little"))
                + wire.encode(Reply.STDOUT, said)
                + wire.encode(Reply.EXIT, exit_message)
            )
        if kind == Request.STDIN:
            return b""
        if kind == Request.PING:
            generation, name = machine.identity()
            return wire.encode(Reply.OK, bytes(32) + generation.to_bytes(8, "little") + wire.string(name))
        if kind == Request.QUIESCE:
            machine.quiesce()
        elif kind == Request.THAW:
            machine.thaw()
        elif kind == Request.IDENTITY and self._agents.refuse_next_identity:
            self._agents.refuse_next_identity = False
            return wire.encode(Reply.ERROR, errno.EIO.to_bytes(4, "little") + wire.string("told to refuse"))
        elif kind == Request.IDENTITY:
            reader = Reader(payload)
            generation = reader.integer(8)
            reader.take(8 + 64)
            machine.identify(generation, reader.text().encode())
        else:
            assert kind == Request.SHUTDOWN, f"request {kind} is not played"
        return wire.encode(Reply.OK)

    def _execute(self, argv: list[str]) -> tuple[int, bytes]:
        if self._machine.is_frozen:
            return BUSY, b""
        if argv[0] == "write":
            before = self._machine.words()
            self._machine.write(words_of(json.loads(argv[1])), instead_of=before)
            return 0, json.dumps(asdict(before)).encode()
        return 0, b""


def _argv(payload: bytes) -> list[str]:
    reader = Reader(payload)
    reader.take(12)
    reader.text()
    return [reader.take(reader.integer(2)).decode() for _ in range(reader.integer(4))]
