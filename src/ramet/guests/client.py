"""The host's side of the agent: one session, one request at a time. What the guest answers is never trusted: every length and
every wait is bounded.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from ramet.errors import ConfigError, GuestError, GuestTimeoutError, VmmDiedError, host_errors
from ramet.guests import wire
from ramet.guests.exec_session import ExecControl, ExecSession, Output
from ramet.guests.ports import Port, take_port
from ramet.guests.wire import Reader, Reply, Request
from ramet.model import ExecResult, Ping

__all__ = ["AgentClient", "ExecControl", "FileMeta", "GuestRefusedError"]

SEED_BYTES = 64
RECEIVE_BYTES = 256 * 1024
COPY_BYTES = 256 * 1024
STALL_S = 60.0
FLAG_PTY, FLAG_DETACH = 1, 2
MAX_OUTPUT_BYTES = 64 * 1024 * 1024


class GuestRefusedError(GuestError):
    """The agent answered with an error of the guest's kernel; ``errno`` is the guest's."""

    code = "guest-refused"

    def __init__(self, message: str, *, errno: int) -> None:
        super().__init__(message)
        self.errno = errno


@dataclass(frozen=True, slots=True, kw_only=True)
class FileMeta:
    """A file that was got: bytes received, and its permission bits."""

    size_bytes: int
    mode: int


class AgentClient:
    """A session with the agent; a context manager. Not for several threads."""

    def __init__(self, sock: socket.socket, *, port: Port | None = None) -> None:
        self._sock = sock
        self._port = port
        epoch = os.urandom(wire.EPOCH_BYTES)
        self._decoder = wire.Decoder(epoch)
        self._messages: list[tuple[int, bytes]] = []
        self._sock.setblocking(False)
        # The hello goes out with the first request: one round trip less on the way to the first answer.
        self._unsent = bytearray(wire.hello(epoch))
        self._deadline_s = 10.0

    @classmethod
    def open(cls, run_dir: Path, *, deadline_s: float = 10.0) -> Self:
        """Take one of the instance's agent ports. The agent need not be up yet: the first request waits for it.

        Raises:
            GuestTimeoutError: if all ports stay busy.
            VmmDiedError: if the VMM is gone.
        """
        port = take_port(run_dir, deadline_s=deadline_s)
        return cls.over(port.sock, deadline_s=deadline_s, port=port)

    @classmethod
    def over(cls, sock: socket.socket, *, deadline_s: float = 10.0, port: Port | None = None) -> Self:
        """A session over a connected socket; its first answer is awaited for ``deadline_s`` seconds."""
        client = cls(sock, port=port)
        client._deadline_s = deadline_s
        return client

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the session: the agent kills the command that it was running, if any."""
        self._sock.close()
        if self._port is not None:
            self._port.close()

    # -- requests ---------------------------------------------------------------------------------------------

    def ping(self, *, timeout_s: float = 5.0) -> Ping:
        """The agent's boot nonce, tick, uptime, generation and host name."""
        reply = Reader(self._ask(Request.PING, b"", timeout_s=timeout_s))
        return Ping(
            nonce=reply.take(16).hex(),
            tick=reply.integer(8),
            uptime_ns=reply.integer(8),
            generation=reply.integer(8),
            hostname=reply.text(),
        )

    def exec(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        stdin: int | bytes | None = None,
        stdout: Output | None = None,
        stderr: Output | None = None,
        timeout_s: float | None = None,
        pty: tuple[int, int] | None = None,
        detach: bool = False,
        control: ExecControl | None = None,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
    ) -> ExecResult:
        """Run a command. Output goes to the callbacks as it comes, or else into the result, up to ``max_output_bytes``.

        Raises:
            GuestRefusedError: if it could not be started, with the guest's errno.
            ConfigError: for arguments that cannot be passed.
            VmmDiedError: if the VMM ends meanwhile.
        """
        request = _exec_request(argv, env or {}, cwd or "", timeout_s, pty, detach=detach)
        started = self._ask(Request.EXEC, request, timeout_s=STALL_S, expect=Reply.STARTED)
        pid = Reader(started).integer(4)
        if detach:
            return ExecResult(status=None, signal=None, pid=pid)
        session = ExecSession(self, stdin=stdin, stdout=stdout, stderr=stderr, limit_bytes=max_output_bytes)
        return session.run(pid, control)

    def put(self, src_fd: int, dst: str, *, mode: int = 0o644, progress: Callable[[int], None] | None = None) -> int:
        """Send all that ``src_fd`` gives into a file of the guest, which appears whole or not at all; returns its bytes."""
        self._ask(Request.PUT, struct.pack("<I", mode) + _string(dst), timeout_s=STALL_S)
        sent = 0
        while True:
            with host_errors("read the file to copy"):
                chunk = os.read(src_fd, COPY_BYTES)
            if not chunk:
                break
            self.send(Request.DATA, chunk)
            self.exchange(timeout_s=STALL_S, until_sent=True)
            if self._messages:
                self._expect(Reply.OK, *self._messages.pop(0))  # the guest refused: raises
            sent += len(chunk)
            if progress:
                progress(sent)
        self._ask(Request.END, b"", timeout_s=10 * STALL_S)
        return sent

    def get(
        self, src: str, dst_fd: int, *, max_bytes: int | None = None, progress: Callable[[int], None] | None = None
    ) -> FileMeta:
        """Write a file of the guest to ``dst_fd``; holes are not kept.

        Raises:
            GuestError: if the guest sends more than ``max_bytes``.
        """
        meta = Reader(self._ask(Request.GET, _string(src), timeout_s=STALL_S, expect=Reply.META))
        meta.integer(8)  # the size at opening; the end is what counts, since /proc files have none
        mode = meta.integer(4)
        received = 0
        while True:
            kind, payload = self.receive(timeout_s=STALL_S)
            if kind == Reply.END:
                return FileMeta(size_bytes=received, mode=mode & 0o7777)
            data = self._expect(Reply.DATA, kind, payload)
            received += len(data)
            if max_bytes is not None and received > max_bytes:
                raise GuestError(f"The guest sent more than {max_bytes} bytes of {src}.")
            with host_errors("write the file that is copied"):
                view = memoryview(data)
                while view:
                    view = view[os.write(dst_fd, view) :]
            if progress:
                progress(received)

    def quiesce(self, *, timeout_s: float) -> None:
        """Freeze the workload, sync and freeze the data file system. On failure the agent has thawed all of it."""
        self._ask(Request.QUIESCE, struct.pack("<I", int(timeout_s * 1000)), timeout_s=timeout_s + 5)

    def thaw(self, *, timeout_s: float = 10.0) -> None:
        """Let them go on; nothing happens if they were not frozen."""
        self._ask(Request.THAW, b"", timeout_s=timeout_s)

    def identity(
        self,
        *,
        generation: int,
        hostname: str,
        machine_id: str,
        seed: bytes,
        wall_clock_ns: int | None = None,
        timeout_s: float = 30.0,
    ) -> tuple[str, ...]:
        """Give the guest its identity; returns the names of resume hooks that failed once it has acknowledged.

        Raises:
            GuestError: if any part of it could not be set: nothing may be thawed then.
        """
        if len(seed) != SEED_BYTES:
            raise ValueError(f"the seed has {SEED_BYTES} bytes")
        now = time.time_ns() if wall_clock_ns is None else wall_clock_ns
        request = struct.pack("<QQ", generation, now) + seed + _string(hostname) + _string(machine_id)
        reply = Reader(self._ask(Request.IDENTITY, request, timeout_s=timeout_s))
        failed = []
        while reply.left:
            failed.append(reply.text())
        return tuple(failed)

    def shutdown(self, *, reboot: bool = False) -> None:
        """Ask the guest to power off (or reboot); returns once it has said that it will."""
        self._ask(Request.SHUTDOWN, bytes((int(reboot),)), timeout_s=10.0)

    # -- the stream -------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        return self._sock.fileno()

    @property
    def unsent_bytes(self) -> int:
        return len(self._unsent)

    def send(self, kind: Request, payload: bytes = b"") -> None:
        """Queue a message; ``exchange`` sends it."""
        self._unsent += wire.encode(kind, payload)

    def take_messages(self) -> list[tuple[int, bytes]]:
        """The messages that have arrived."""
        found, self._messages = self._messages, []
        return found

    def receive(self, *, timeout_s: float) -> tuple[int, bytes]:
        """The next message.

        Raises:
            GuestTimeoutError: if none arrives in time.
        """
        end = time.monotonic() + timeout_s
        while not self._messages:
            self.exchange(timeout_s=end - time.monotonic())
        return self._messages.pop(0)

    def exchange(self, *, timeout_s: float, until_sent: bool = False, extra: Sequence[int] = ()) -> list[int]:
        """Send and receive until something has arrived (or all is sent); returns which of ``extra`` are readable.

        Raises:
            GuestTimeoutError: after ``timeout_s`` without progress.
            VmmDiedError: if the other side is gone.
        """
        while True:
            readable, writable = self._poll(timeout_s, extra)
            if writable:
                self._flush()
            if self.fileno() in readable and self._fill():
                return [fd for fd in readable if fd != self.fileno()]
            ready = [fd for fd in readable if fd != self.fileno()]
            if ready or (until_sent and not self._unsent):
                return ready

    def _poll(self, timeout_s: float, extra: Sequence[int]) -> tuple[list[int], bool]:
        poller = select.poll()
        poller.register(self.fileno(), select.POLLIN | (select.POLLOUT if self._unsent else 0))
        for fd in extra:
            poller.register(fd, select.POLLIN)
        events = poller.poll(max(timeout_s, 0) * 1000)
        if not events:
            raise GuestTimeoutError(
                f"The guest's agent did not answer within {max(timeout_s, 0):.3g} s.",
                hint="`ramet logs NAME` shows the guest's console.",
            )
        readable = [fd for fd, what in events if what & ~select.POLLOUT]
        writable = any(fd == self.fileno() and what & select.POLLOUT for fd, what in events)
        return readable, writable

    def _flush(self) -> None:
        try:
            sent = self._sock.send(self._unsent)
        except BlockingIOError:
            return
        except OSError as err:
            raise VmmDiedError("The VMM ended while its guest was being talked to.") from err
        del self._unsent[:sent]

    def _fill(self) -> bool:
        try:
            data = self._sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return False
        except OSError as err:
            raise VmmDiedError("The VMM ended while its guest was being talked to.") from err
        if not data:
            raise VmmDiedError("The VMM ended while its guest was being talked to.")
        self._messages += self._decoder.feed(data)
        return bool(self._messages)

    def _ask(self, kind: Request, payload: bytes, *, timeout_s: float, expect: Reply = Reply.OK) -> bytes:
        self.send(kind, payload)
        wait_s = timeout_s if self._decoder.synced else max(timeout_s, self._deadline_s)
        return self._expect(expect, *self.receive(timeout_s=wait_s))

    def _expect(self, expected: Reply, kind: int, payload: bytes) -> bytes:
        if kind == expected:
            return payload
        if kind == Reply.ERROR:
            reader = Reader(payload)
            number = reader.integer(4)
            raise GuestRefusedError(f"In the guest: {reader.text()}.", errno=number)
        raise GuestError(f"The guest's agent answered with message {kind:#x} where {expected.name} was due.")


def _string(text: str) -> bytes:
    try:
        return wire.string(text)
    except ValueError as err:
        raise ConfigError(f"{text[:60]!r} cannot be passed to the guest: {err}.") from err


def _exec_request(
    argv: Sequence[str],
    env: Mapping[str, str],
    cwd: str,
    timeout_s: float | None,
    pty: tuple[int, int] | None,
    *,
    detach: bool,
) -> bytes:
    if timeout_s is not None and not 0 < timeout_s < 4e6:
        raise ConfigError(f"{timeout_s:g} s is no time limit.", hint="Use a positive number of seconds.")
    if pty and detach:
        raise ConfigError("A detached command has no terminal.")
    flags = (FLAG_PTY if pty else 0) | (FLAG_DETACH if detach else 0)
    rows, cols = pty or (0, 0)
    try:
        request = (
            struct.pack("<IIHH", flags, max(1, int(timeout_s * 1000)) if timeout_s else 0, rows, cols)
            + wire.string(cwd)
            + wire.strings(list(argv))
            + wire.strings([f"{key}={value}" for key, value in env.items()])
        )
    except (ValueError, struct.error) as err:
        raise ConfigError(f"The command cannot be passed to the guest: {err}.") from err
    if len(request) > wire.MESSAGE_MAX:
        raise ConfigError(f"The command has {len(request)} bytes; {wire.MESSAGE_MAX} can be passed.")
    return request
