"""A running guest command: stdin under the agent's window, output as it comes, signals and window sizes from outside."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from ramet.errors import SEE_CONSOLE, GuestError, GuestTimeoutError, host_errors
from ramet.guests import wire
from ramet.guests.wire import Reader, Reply, Request
from ramet.model import ExecResult

Output = Callable[[bytes], None]
CONTROL = 5
"""Bytes of one record from ``ExecControl``: a request and its argument, padded."""
CONTROLS_AT_ONCE = 256


class Stream(Protocol):
    """What this needs of a stream."""

    def send(self, kind: Request, payload: bytes = b"") -> None: ...

    def exchange(self, *, end_s: float | None, extra: Sequence[int] = ...) -> list[int] | None: ...

    def take_messages(self) -> list[tuple[int, bytes]]: ...


class ExecControl:
    """Reaches into a running command, from a signal handler or another thread. ``close()`` twice is fine.

    Nothing here blocks: what cannot be queued, since hundreds are, is dropped.
    """

    def __init__(self) -> None:
        self._read, self._write = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._read.setblocking(False)
        self._write.setblocking(False)

    def send_signal(self, number: int) -> None:
        """Send a signal to the command's process group."""
        self._put(bytes((Request.SIGNAL, number, 0, 0, 0)))

    def resize(self, rows: int, cols: int) -> None:
        """Tell the command's terminal its new size."""
        self._put(
            bytes((Request.RESIZE,)) + min(rows, 65535).to_bytes(2, "little") + min(cols, 65535).to_bytes(2, "little")
        )

    def _put(self, record: bytes) -> None:
        with suppress(BlockingIOError):
            self._write.send(record)

    def fileno(self) -> int:
        return self._read.fileno()

    def take(self) -> list[tuple[Request, bytes]]:
        """What was asked for since the last time."""
        found = []
        with suppress(BlockingIOError):
            for _ in range(CONTROLS_AT_ONCE):
                record = self._read.recv(CONTROL)
                kind = Request(record[0])
                found.append((kind, record[1:2] if kind is Request.SIGNAL else record[1:]))
        return found

    def close(self) -> None:
        self._read.close()
        self._write.close()


class ExecSession:
    """One command until its end.

    Args:
        stdin: bytes, a descriptor that is read while the command takes it (``on_stdin`` hears how much), or None.
        stdout, stderr: called with output as it comes; without one it is collected, up to ``limit_bytes`` of both.
        end_s: when to give up, by the monotonic clock.
        stall_s: how long the agent may be silent; once it has all of stdin, ``sync_s``.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        stdin: int | bytes | None,
        stdout: Output | None,
        stderr: Output | None,
        limit_bytes: int,
        on_stdin: Callable[[int], None] | None = None,
        end_s: float | None = None,
        stall_s: float | None = None,
        sync_s: float | None = None,
    ) -> None:
        self._stream = stream
        self._stdin_fd = stdin if isinstance(stdin, int) else None
        self._input = memoryview(stdin) if isinstance(stdin, bytes) else memoryview(b"")
        self._on_stdin = on_stdin
        self._window = wire.STDIN_WINDOW
        self._eof_sent = False
        self._collected = {Reply.STDOUT: bytearray(), Reply.STDERR: bytearray()}
        self._callbacks = {Reply.STDOUT: stdout, Reply.STDERR: stderr}
        self._limit_bytes = limit_bytes
        self._end_s = end_s
        self._stall_s = stall_s
        self._sync_s = sync_s
        self._heard_s = time.monotonic()

    def run(self, pid: int, control: ExecControl | None) -> ExecResult:
        """Drive the command to its end.

        Raises:
            GuestTimeoutError: past ``end_s``, or after ``stall_s`` without a word from the agent.
            GuestError: if the agent speaks nonsense, or the output has no room.
        """
        while True:
            self._send_input()
            watched = [control.fileno()] if control else []
            if self._stdin_fd is not None and not self._eof_sent and not self._input and self._window > 0:
                watched.append(self._stdin_fd)
            ready = self._exchange(watched)
            if control and control.fileno() in ready:
                for request, argument in control.take():
                    self._stream.send(request, argument)
            if self._stdin_fd is not None and self._stdin_fd in ready:
                self._read_stdin(self._stdin_fd)
            for kind, payload in self._stream.take_messages():
                ended = self._take(kind, payload)
                if ended is not None:
                    return self._result(ended, pid)

    def _exchange(self, watched: list[int]) -> list[int]:
        silence_s = self._sync_s if self._eof_sent and self._sync_s is not None else self._stall_s
        silent_until_s = None if silence_s is None else self._heard_s + silence_s
        end_s = min((end for end in (self._end_s, silent_until_s) if end is not None), default=None)
        ready = self._stream.exchange(end_s=end_s, extra=watched)
        if ready is None:
            what = "has not ended the command at its time limit" if end_s == self._end_s else "has fallen silent"
            raise GuestTimeoutError(f"The guest's agent {what}.", hint=SEE_CONSOLE)
        return ready

    def _read_stdin(self, fd: int) -> None:
        with host_errors("read what to send to the guest"):
            data = os.read(fd, self._window)
        if not data:
            self._send_eof()
            return
        self._input = memoryview(data)
        if self._on_stdin is not None:
            self._on_stdin(len(data))

    def _send_input(self) -> None:
        while self._input and self._window > 0:
            piece = self._input[: min(wire.PAYLOAD_MAX, self._window)]
            self._stream.send(Request.STDIN, bytes(piece))
            self._window -= len(piece)
            self._input = self._input[len(piece) :]
        if not self._input and self._stdin_fd is None and not self._eof_sent:
            self._send_eof()

    def _send_eof(self) -> None:
        self._stream.send(Request.STDIN)
        self._eof_sent = True

    def _take(self, kind: int, payload: bytes) -> Reader | None:
        self._heard_s = time.monotonic()
        if kind in (Reply.STDOUT, Reply.STDERR):
            self._output(Reply(kind), payload)
        elif kind == Reply.WINDOW:
            self._window = min(self._window + Reader(payload).integer(4), wire.STDIN_WINDOW)
        elif kind == Reply.EXIT:
            return Reader(payload)
        elif kind == Reply.ERROR:
            wire.refuse(payload)
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
        if value > 255 or signalled > 1 or timed_out > 1:
            raise GuestError(f"The guest's agent sent an exit status that cannot be: {ended.data.hex()}.")
        return ExecResult(
            status=None if signalled else value,
            signal=value if signalled else None,
            timed_out=bool(timed_out),
            pid=pid,
            stdout=bytes(self._collected[Reply.STDOUT]),
            stderr=bytes(self._collected[Reply.STDERR]),
        )
