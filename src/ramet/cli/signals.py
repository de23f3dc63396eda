"""What ends a verb early: Ctrl-C, SIGTERM, and the SIGHUP of a terminal that closes."""

from __future__ import annotations

import os
import signal
from types import FrameType

from ramet.cli import terminal

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = (
    b"\nramet: already stopping: what was begun is being undone. Ctrl-\\ ends it at once; the next command tidies up.\n"
)


class TerminatedError(KeyboardInterrupt):
    """SIGTERM or SIGHUP. Not an ``Exception``: nothing on the way up may take it for an error to be handled."""


class Ending:
    """A signal handler that raises once.

    A second signal must not cut off what the first one set in motion: a guest that was frozen for a capture is being thawed,
    a VMM is being reaped. It is told to the person instead.
    """

    def __init__(self) -> None:
        self._has_begun = False

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if self._has_begun:
            if os.isatty(terminal.STDERR):
                os.write(terminal.STDERR, PATIENCE)
            return
        self._has_begun = True
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise TerminatedError


def install() -> None:
    """Let the first ending signal raise. One that nohup(1), or a shell for a job in the background, ignores stays ignored.

    SIGCHLD does not: with it ignored, wait(2) tells nobody how a helper ended.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    ending = Ending()
    for number in ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, ending)
