"""A terminal that a test types into and reads from, with a command in front of it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from types import TracebackType
from typing import Self

from tests.vm.command_line import CommandLine

READ_BYTES = 65536
TIMEOUT_S = 180.0


class PseudoTerminal:
    """``ramet`` as the leader of a session with a controlling terminal; a context manager. ``screen`` is all that it showed."""

    def __init__(self, command: CommandLine, *argv: str, rows: int = 30, columns: int = 100) -> None:
        self._master, slave = pty.openpty()
        self.screen = b""
        self._seen = 0
        try:
            self.resize(rows, columns)
            there = CommandLine(command.home, {**(command.changes or {}), "TERM": "xterm"})
            self.process = there.start(*argv, terminal_fd=slave)
        except BaseException:
            os.close(self._master)
            raise
        finally:
            os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.hang_up()
        with self.process:
            try:
                self.process.wait(timeout=TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise

    def resize(self, rows: int, columns: int) -> None:
        """As when a person resizes a window."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def modes(self) -> list[object]:
        """Its modes (termios(3)); where the command left them once it has ended."""
        return list(termios.tcgetattr(self._master))

    def type(self, text: bytes) -> None:
        """Press these keys."""
        os.write(self._master, text)

    def expect(self, text: bytes) -> bytes:
        """Wait until ``text`` is shown, after what was expected last; returns what was shown before it."""
        end = time.monotonic() + TIMEOUT_S
        while (at := self.screen.find(text, self._seen)) < 0:
            assert self._read(end - time.monotonic()), f"{text!r} was never shown: {self.screen!r}"
        before, self._seen = self.screen[self._seen : at], at + len(text)
        return before

    def finish(self) -> int:
        """Read until the command ends; returns its status."""
        end = time.monotonic() + TIMEOUT_S
        while self._read(end - time.monotonic()):
            pass
        return self.process.wait(timeout=max(0.0, end - time.monotonic()))

    def hang_up(self) -> None:
        """Close the terminal, as when a window is closed or a connection is lost: the session gets SIGHUP. Twice is fine."""
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    def _read(self, timeout_s: float) -> bool:
        """More of what is shown; False once nobody has the terminal open (EIO, pty(7)) or it was quiet for too long."""
        poll = select.poll()
        poll.register(self._master, select.POLLIN)
        if timeout_s <= 0 or not poll.poll(timeout_s * 1000):
            return False
        try:
            data = os.read(self._master, READ_BYTES)
        except OSError:
            return False
        self.screen += data
        return bool(data)
