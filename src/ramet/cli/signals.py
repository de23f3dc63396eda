"""What ends a verb early: Ctrl-C, SIGTERM, and the SIGHUP of a terminal that closes."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from ramet.cli import terminal
from ramet.signals import ENDING_SIGNALS

PATIENCE = (
    b"\nramet: already stopping: what was begun is being undone. Ctrl-\\ ends it at once; the next command tidies up.\n"
)


AGAIN_S = 0.005


class TerminatedError(KeyboardInterrupt):
    """An ending signal. Not an ``Exception``: nothing on the way up may take it for an error to be handled."""

    def __init__(self, number: int, ending: Ending) -> None:
        super().__init__()
        self.number = number
        self._ending = ending

    def __del__(self) -> None:
        self._ending.forgotten(self.number)


class Ending:
    """A signal handler that raises once.

    A second signal must not cut off what the first one set in motion: a guest that was frozen for a capture is being thawed,
    a VMM is being reaped. It is told to the person instead.

    A handler's exception may be raised where somebody drops it: Python does in finalizers and in the hooks of a fork, and an
    extension in C may call PyErr_Clear (msgspec does while it makes a decoder). One that dies before the verb has ended is
    therefore raised again, a moment later.
    """

    def __init__(self) -> None:
        self._has_begun = False
        self._forgotten: int | None = None
        self.is_over = False

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if self._has_begun:
            if os.isatty(terminal.STDERR):
                os.write(terminal.STDERR, PATIENCE)
            return
        self._has_begun = True
        raise TerminatedError(number, self)

    def forgotten(self, number: int) -> None:
        """The exception for this signal is gone. Where it goes nothing can be raised, so a timer does it."""
        if not self.is_over:
            self._forgotten = number
            signal.setitimer(signal.ITIMER_REAL, AGAIN_S)

    def again(self, _number: int, _frame: FrameType | None) -> None:
        """The handler of that timer: the signal comes once more, to whatever handles it now (``signals_held``)."""
        if self._forgotten is not None and not self.is_over:
            number, self._forgotten, self._has_begun = self._forgotten, None, False
            signal.raise_signal(number)


_ending = Ending()


def install() -> None:
    """Let the first ending signal raise. One that nohup(1), or a shell for a job in the background, ignores stays ignored.

    SIGCHLD does not: with it ignored, wait(2) tells nobody how a helper ended.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, _ending.again)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    sys.unraisablehook = _unraisable
    for number in ENDING_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _ending)


def over() -> None:
    """The verb has ended, or what was raised has been heard: it is not raised again."""
    _ending.is_over = True


def _unraisable(dropped: sys.UnraisableHookArgs) -> None:
    if not isinstance(dropped.exc_value, TerminatedError):  # that one comes again
        sys.__unraisablehook__(dropped)
