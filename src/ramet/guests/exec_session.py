"""A running guest command: stdin under the agent's window, output as it comes, signals and window sizes from outside."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Protocol

from ramet.errors import GuestError, GuestTimeoutError, host_errors
from ramet.guests import wire
from ramet.guests.wire import Reader, Reply, Request
from ramet.model import ExecResult

Output = Callable[[bytes], None]
STDIN_CHUNK_BYTES = 32 * 1024
IDLE_S = 3600.0


class Stream(Protocol):
    """What this needs of a client."""

    def send(self, kind: Request, payload: bytes = b"") -> None: ...

    def exchange(self, *, timeout_s: float, until_sent: bool = False, extra: list[int] = ...) -> list[int]: ...

    def take_messages(self) -> list[tuple[int, bytes]]: ...


class ExecControl:
    """Reaches into a running command, from a signal handler or another thread. ``close()`` twice is fine."""

    def __init__(self) -> None:
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)

    def send_signal(self, number: int) -> None:
        """Send a signal to the command's process group."""
        self._write.send(bytes((Request.SIGNAL, number, 0, 0, 0)))

    def resize(self, rows: int, cols: int) -> None:
        """Tell the command's terminal its new size."""
        self._write.send(bytes((Request.RESIZE,)) + rows.to_bytes(2, "little") + cols.to_bytes(2, "little"))

    def fileno(self) -> int:
        return self._read.fileno()

    def take(self) -> list[tuple[Request, bytes]]:
        """What was asked for since the last time."""
        raw = self._read.recv(5 * 1000)
        found = []
        for start in range(0, len(raw), 5):
            kind = Request(raw[start])
            found.append((kind, raw[start + 1 : start + 2] if kind is Request.SIGNAL else raw[start + 1 : start + 5]))
        return found

    def close(self) -> None:
        self._read.close()
        self._write.close()


class ExecSession:
    """One command until its end."""

    def __init__(
        self,
        stream: Stream,
        *,
        stdin: int | bytes | None,
        stdout: Output | None,
        stderr: Output | None,
        limit_bytes: int,
    ) -> None:
        self._stream = stream
        self._stdin_fd = stdin if isinstance(stdin, int) else None
        self._input = memoryview(stdin) if isinstance(stdin, bytes) else memoryview(b"")
        self._window = wire.STDIN_WINDOW
        self._eof_sent = False
        self._collected = {Reply.STDOUT: bytearray(), Reply.STDERR: bytearray()}
        self._callbacks = {Reply.STDOUT: stdout, Reply.STDERR: stderr}
        self._limit_bytes = limit_bytes

    def run(self, pid: int, control: ExecControl | None) -> ExecResult:
        """Drive the command to its end."""
        while True:
            for kind, payload in self._stream.take_messages():  # some may have come with the answer to the request
                ended = self._take(kind, payload)
                if ended is not None:
                    return self._result(ended, pid)
            self._send_input()
            watched = [control.fileno()] if control else []
            if self._wants_stdin():
                watched.append(self._stdin_fd if self._stdin_fd is not None else -1)
            ready = self._wait(watched)
            if control and control.fileno() in ready:
                for request, argument in control.take():
                    self._stream.send(request, argument)
            if self._stdin_fd is not None and self._stdin_fd in ready:
                self._read_stdin(self._stdin_fd)

    def _wait(self, watched: list[int]) -> list[int]:
        try:
            return self._stream.exchange(timeout_s=IDLE_S, extra=watched)
        except GuestTimeoutError:
            return []  # a quiet command is no error

    def _wants_stdin(self) -> bool:
        return self._stdin_fd is not None and not self._eof_sent and not self._input and self._window > 0

    def _read_stdin(self, fd: int) -> None:
        with host_errors("read stdin"):
            data = os.read(fd, min(STDIN_CHUNK_BYTES, self._window))
        if data:
            self._input = memoryview(data)
        else:
            self._send_eof()

    def _send_input(self) -> None:
        while self._input and self._window > 0:
            piece = self._input[: min(STDIN_CHUNK_BYTES, self._window)]
            self._stream.send(Request.STDIN, bytes(piece))
            self._window -= len(piece)
            self._input = self._input[len(piece) :]
        if not self._input and self._stdin_fd is None and not self._eof_sent:
            self._send_eof()

    def _send_eof(self) -> None:
        self._stream.send(Request.STDIN)
        self._eof_sent = True

    def _take(self, kind: int, payload: bytes) -> Reader | None:
        if kind in (Reply.STDOUT, Reply.STDERR):
            self._output(Reply(kind), payload)
        elif kind == Reply.WINDOW:
            self._window = min(self._window + Reader(payload).integer(4), wire.STDIN_WINDOW)
        elif kind == Reply.EXIT:
            return Reader(payload)
        elif kind == Reply.ERROR:
            reader = Reader(payload)
            reader.integer(4)
            raise GuestError(f"In the guest: {reader.text()}.")
        else:
            raise GuestError(f"The guest's agent sent message {kind:#x} during a command.")
        return None

    def _output(self, kind: Reply, data: bytes) -> None:
        callback = self._callbacks[kind]
        if callback is not None:
            callback(data)
            return
        self._collected[kind] += data
        if sum(map(len, self._collected.values())) > self._limit_bytes:
            raise GuestError(
                f"The command wrote more than {self._limit_bytes} bytes.", hint="Take its output as it comes instead."
            )

    def _result(self, ended: Reader, pid: int) -> ExecResult:
        signalled, value, timed_out = ended.integer(1), ended.integer(4), ended.integer(1)
        return ExecResult(
            status=None if signalled else value,
            signal=value if signalled else None,
            timed_out=bool(timed_out),
            pid=pid,
            stdout=bytes(self._collected[Reply.STDOUT]),
            stderr=bytes(self._collected[Reply.STDERR]),
        )
