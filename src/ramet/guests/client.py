"""The host's side of the agent: one session, one request at a time. What the guest answers is never trusted."""

from __future__ import annotations

import logging
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from ramet.errors import ConfigError, GuestError, GuestTimeoutError, VmmDiedError
from ramet.guests import transfer, vsock, wire
from ramet.guests.exec_session import ExecControl, ExecSession, Output
from ramet.guests.ports import take_port
from ramet.guests.stream import AgentStream, first_answered
from ramet.guests.transfer import FileMeta
from ramet.guests.wire import GuestRefusedError, Reader, Reply, Request
from ramet.model import ExecResult, Ping

__all__ = ["AgentClient", "ExecControl", "FileMeta", "GuestRefusedError"]

log = logging.getLogger("ramet.agent")
FIRST_TRY_S = 1.0
CONNECTIONS_MAX = 3
"""How many hellos may be unanswered at once."""
MORE_S = 0.5
"""How long one more connection is waited for."""
NO_SESSION = "The guest's agent opened no session within {:.3g} s."
CONSOLE = "`ramet logs NAME` shows the guest's console."
SEED_BYTES = 64
START_S = 60.0
"""How long a command may take to start: the workload may be frozen meanwhile."""
STALL_S = 60.0
"""How long a file copy may stand still."""
SYNC_S = 600.0
"""How long the end of a put may take: the guest writes it all to its disk."""
LIMIT_MARGIN_S = 30.0
"""How long after a command's time limit the agent may take to say so."""
MAX_OUTPUT_BYTES = 64 * 1024 * 1024
MAX_WORDS_BYTES = 64 * 1024
"""What ``ramet-agent put`` and ``get`` may write to stderr."""


class AgentClient:
    """A session with the agent; a context manager. Not for several threads."""

    def __init__(self, stream: AgentStream) -> None:
        self._stream = stream

    @classmethod
    def open(cls, run_dir: Path, *, deadline_s: float = 10.0) -> Self:
        """A session that the instance's agent has answered, over a vsock or one of its ports. It need not be up yet.

        Raises:
            GuestTimeoutError: if all ports stay busy, or the agent does not answer, within ``deadline_s``.
            VmmDiedError: if the VMM is gone.
        """
        return cls(_open_session(run_dir, deadline_s))

    @classmethod
    def over(cls, sock: socket.socket, *, deadline_s: float = 10.0) -> Self:
        """A session over a connected socket, which it closes, that the agent at its other end has answered.

        Raises:
            GuestTimeoutError: if it does not within ``deadline_s``.
            VmmDiedError: if the other end is closed.
        """
        stream = AgentStream(sock)
        try:
            if first_answered([stream], timeout_s=deadline_s) is None:
                raise GuestTimeoutError(NO_SESSION.format(deadline_s), hint=CONSOLE)
        except BaseException:
            stream.close()
            raise
        return cls(stream)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the session: the agent kills the command that it was running, if any. Twice is fine."""
        self._stream.close()

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

        Without ``timeout_s`` it waits for as long as the command runs and the VMM lives.

        Raises:
            GuestRefusedError: if it could not be started, with the guest's errno.
            GuestTimeoutError: if the agent does not keep the time limit.
            ConfigError: for arguments that cannot be passed.
            VmmDiedError: if the VMM ends meanwhile.
        """
        if pty and detach:
            raise ConfigError("A detached command has no terminal.")
        flags = (wire.FLAG_PTY if pty else 0) | (wire.FLAG_DETACH if detach else 0)
        pid = self._start(_exec_request(argv, env or {}, cwd or "", timeout_s, pty or (0, 0), flags))
        if detach:
            return ExecResult(status=None, signal=None, pid=pid)
        session = ExecSession(
            self._stream,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            limit_bytes=max_output_bytes,
            end_s=None if timeout_s is None else time.monotonic() + timeout_s + LIMIT_MARGIN_S,
        )
        return session.run(pid, control)

    def put(self, src_fd: int, dst: str, *, mode: int = 0o644, progress: Callable[[int], None] | None = None) -> int:
        """Send all that ``src_fd`` gives into a file of the guest, which appears whole or not at all; returns its bytes.

        Raises:
            GuestRefusedError: if it could not be written, with the guest's errno.
        """
        sent = 0

        def count(more: int) -> None:
            nonlocal sent
            sent += more
            if progress:
                progress(sent)

        pid = self._start(_files_request("put", f"{mode & 0o7777:o}", dst))
        session = ExecSession(
            self._stream,
            stdin=src_fd,
            stdout=None,
            stderr=None,
            limit_bytes=MAX_WORDS_BYTES,
            on_stdin=count,
            stall_s=STALL_S,
            sync_s=SYNC_S,
        )
        transfer.check(session.run(pid, None), dst)
        return sent

    def get(
        self, src: str, dst_fd: int, *, max_bytes: int | None = None, progress: Callable[[int], None] | None = None
    ) -> FileMeta:
        """Write a file of the guest to ``dst_fd``, as long as it was when the guest opened it; holes are not kept.

        Raises:
            GuestRefusedError: if it could not be read, with the guest's errno.
            GuestError: if the guest sends more than it announced or than ``max_bytes``.
            NoSpaceError: if what it announces has no room.
        """
        incoming = transfer.Incoming(src, dst_fd, max_bytes=max_bytes, progress=progress)
        pid = self._start(_files_request("get", src))
        session = ExecSession(
            self._stream,
            stdin=None,
            stdout=incoming.take,
            stderr=None,
            limit_bytes=MAX_WORDS_BYTES,
            stall_s=STALL_S,
        )
        transfer.check(session.run(pid, None), src)
        return incoming.result()

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

    def _start(self, request: bytes) -> int:
        return Reader(self._ask(Request.EXEC, request, timeout_s=START_S, expect=Reply.STARTED)).integer(4)

    def _ask(self, kind: Request, payload: bytes, *, timeout_s: float, expect: Reply = Reply.OK) -> bytes:
        self._stream.send(kind, payload)
        answer, data = self._stream.receive(timeout_s=timeout_s)
        if answer == Reply.ERROR:
            wire.refuse(data)
        if answer != expect:
            raise GuestError(f"The guest's agent answered with message {answer:#x} where {expect.name} was due.")
        return data


def _open_session(run_dir: Path, deadline_s: float) -> AgentStream:
    """A session that the agent has answered. Until then nothing was asked, so a hello that is lost costs one more try.

    On a vsock it is lost where the guest resets its transport after it has taken the hello and before its agent has answered:
    it tells nobody (Linux, virtio_vsock_reset_sock). On a port it has been lost after a boot, once in some ten thousand
    sessions. A connection on which nothing has come for a while gets company, and may still answer: agents can be slow.
    """
    end_s = time.monotonic() + deadline_s
    try_s = FIRST_TRY_S
    streams: list[AgentStream] = []
    try:
        while (left_s := end_s - time.monotonic()) > 0:
            try:
                if not streams:
                    streams.append(_connect(run_dir, left_s))
                else:
                    if len(streams) == CONNECTIONS_MAX:
                        streams.pop().close()  # the first is kept: its agent has had the longest time
                    with suppress(GuestTimeoutError):  # those that there are may still answer
                        streams.append(_connect(run_dir, min(left_s, MORE_S)))
                answered = first_answered(streams, timeout_s=max(min(try_s, end_s - time.monotonic()), 0))
            except VmmDiedError:
                if not streams:
                    raise  # nobody listens
                log.debug("%s: a connection to the guest was reset before it was of use; once more", run_dir)
                while streams:
                    streams.pop().close()
                time.sleep(vsock.RETRY_S)  # the agent may have no room for one more session
                continue
            if answered is not None:
                streams.remove(answered)
                return answered
            log.debug("%s: no answer to the hello for %g s; once more, on another connection", run_dir, try_s)
            try_s *= 2
    finally:
        for stream in streams:
            stream.close()
    raise GuestTimeoutError(NO_SESSION.format(deadline_s), hint=CONSOLE)


def _connect(run_dir: Path, deadline_s: float) -> AgentStream:
    if vsock.is_there(run_dir):
        return AgentStream(vsock.connect(run_dir, deadline_s=deadline_s), probes=True)
    port = take_port(run_dir, deadline_s=deadline_s)
    return AgentStream(port.sock, port=port)


def _string(text: str) -> bytes:
    try:
        return wire.string(text)
    except ValueError as err:
        raise ConfigError(f"{text[:60]!r} cannot be passed to the guest: {err}.") from err


def _files_request(*words: str) -> bytes:
    return _exec_request(("ramet-agent", *words), {}, "", None, (0, 0), wire.FLAG_FILES)


def _exec_request(
    argv: Sequence[str],
    env: Mapping[str, str],
    cwd: str,
    timeout_s: float | None,
    size: tuple[int, int],
    flags: int,
) -> bytes:
    if timeout_s is not None and not 0 < timeout_s < 4e6:
        raise ConfigError(f"{timeout_s:g} s is no time limit.", hint="Use a positive number of seconds.")
    try:
        request = (
            struct.pack("<IIHH", flags, max(1, int(timeout_s * 1000)) if timeout_s else 0, *size)
            + wire.string(cwd)
            + wire.strings(list(argv))
            + wire.strings([f"{key}={value}" for key, value in env.items()])
        )
    except (ValueError, struct.error) as err:
        raise ConfigError(f"The command cannot be passed to the guest: {err}.") from err
    if len(request) > wire.MESSAGE_MAX:
        raise ConfigError(f"The command has {len(request)} bytes; {wire.MESSAGE_MAX} can be passed.")
    return request
