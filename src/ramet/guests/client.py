"""The host's side of the agent: one session, one request at a time. What the guest answers is never trusted."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

from ramet.closing import Closing
from ramet.errors import ConfigError, GuestError
from ramet.guests import transfer, wire
from ramet.guests.exec_session import ExecControl, ExecSession, Output
from ramet.guests.requests import exec_request, files_request, identity_request, quiesce_request
from ramet.guests.sessions import open_session, session_over
from ramet.guests.stream import AgentStream
from ramet.guests.transfer import FileMeta
from ramet.guests.wire import GuestRefusedError, Reader, Reply, Request
from ramet.model import ExecResult, Ping

__all__ = ["AgentClient", "ExecControl", "FileMeta", "GuestRefusedError"]

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


class AgentClient(Closing):
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
        return cls(open_session(run_dir, deadline_s))

    @classmethod
    def over(cls, sock: socket.socket, *, deadline_s: float = 10.0) -> Self:
        """A session over a connected socket, which it closes, that the agent at its other end has answered.

        Raises:
            GuestTimeoutError: if it does not within ``deadline_s``.
            VmmDiedError: if the other end is closed.
        """
        return cls(session_over(sock, deadline_s))

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
        outside_workload: bool = False,
        control: ExecControl | None = None,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
    ) -> ExecResult:
        """Run a command. Output goes to the callbacks as it comes, or else into the result, up to ``max_output_bytes``.
        ``outside_workload``: also while the workload is frozen.

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
        flags |= wire.FLAG_OUTSIDE if outside_workload else 0
        pid = self._start(exec_request(argv, env or {}, cwd or "", timeout_s, pty or (0, 0), flags))
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

        pid = self._start(files_request("put", f"{mode & 0o7777:o}", dst))
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
        pid = self._start(files_request("get", src))
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
        self._ask(Request.QUIESCE, quiesce_request(timeout_s), timeout_s=timeout_s + 5)

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
        request = identity_request(
            generation=generation,
            wall_clock_ns=time.time_ns() if wall_clock_ns is None else wall_clock_ns,
            seed=seed,
            hostname=hostname,
            machine_id=machine_id,
        )
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
