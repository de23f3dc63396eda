"""The terminal at our end: its size, and raw mode that is always taken back."""

from __future__ import annotations

import os
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

STDIN = 0
STDOUT = 1
DEFAULT_SIZE = (24, 80)


def size() -> tuple[int, int]:
    """Rows and columns of the terminal on stdout or, failing that, stdin; 24 × 80 where neither is one."""
    for fd in (STDOUT, STDIN):
        if os.isatty(fd):
            columns, rows = os.get_terminal_size(fd)
            if rows > 0 and columns > 0:  # a terminal that was never told its size has 0 × 0
                return rows, columns
    return DEFAULT_SIZE


@contextmanager
def raw_mode() -> Iterator[None]:
    """Hand every key on as it is while the block runs, if stdin is a terminal; its old mode comes back in any case."""
    if not os.isatty(STDIN):
        yield
        return
    before = termios.tcgetattr(STDIN)
    try:
        tty.setraw(STDIN, termios.TCSADRAIN)
        yield
    finally:
        termios.tcsetattr(STDIN, termios.TCSADRAIN, before)


def stdin_fd() -> int | None:
    """Descriptor 0, or None if we were started with it closed (it could be any file by now)."""
    try:
        os.fstat(STDIN)
    except OSError:
        return None
    return STDIN
