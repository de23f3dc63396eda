"""The terminal at our end: its size, and raw mode that is always taken back."""

from __future__ import annotations

import os
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress

STDIN = 0
STDOUT = 1
STDERR = 2
DEFAULT_SIZE = (24, 80)


def claim_standard_descriptors() -> None:
    """Open /dev/null in place of a standard descriptor that we were started without.

    The next file to be opened would get its number, and guest output, or a lock's file, would pass for stdin or stderr.
    """
    for fd in (STDIN, STDOUT, STDERR):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one


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
        with suppress(termios.error):  # the terminal may have closed
            termios.tcsetattr(STDIN, termios.TCSADRAIN, before)
