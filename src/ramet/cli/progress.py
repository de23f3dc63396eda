"""One line on a terminal's stderr that says what takes so long.

A small thread of our own instead of a library's: it holds no lock that a forked child could need, is never there where
stderr is no terminal, and takes no signals, so that Ctrl-C always reaches the main thread.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable
from types import TracebackType

from ramet.cli import terminal
from ramet.errors import RametError

GRACE_S = 1.0
"""A verb that is done sooner shows nothing."""
TICK_S = 0.1
FRAMES = "|/-\\"
BAR_WIDTH = 30
CLEAR = b"\r\x1b[2K"


def possible() -> bool:
    """Whether stderr is a terminal on which a line can be rewritten."""
    return os.isatty(terminal.STDERR) and os.environ.get("TERM", "dumb") != "dumb"


def clear_line() -> None:
    """Make room for something else to be written where a spinner is being drawn; its next frame follows below."""
    if Spinner.drawing:
        os.write(terminal.STDERR, CLEAR)


class Spinner:
    """Context manager: after ``GRACE_S``, a line with the last text and the elapsed time; it is gone at the end."""

    drawing = False

    def __init__(self, text: str) -> None:
        self._text = text
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._spin, name="ramet-progress", daemon=True)
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        """Replace the text."""
        self._text = text

    def __enter__(self) -> Spinner:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _spin(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        if self._done.wait(GRACE_S):
            return
        Spinner.drawing = True
        try:
            for frame in itertools.cycle(FRAMES):
                os.write(terminal.STDERR, CLEAR + self._line(frame).encode(errors="replace"))
                if self._done.wait(TICK_S):
                    break
            os.write(terminal.STDERR, CLEAR)
        except OSError:
            return  # the terminal has gone; the verb goes on and nobody is left to be told
        finally:
            Spinner.drawing = False

    def _line(self, frame: str) -> str:
        columns = os.get_terminal_size(terminal.STDERR).columns or 80
        elapsed = f" {time.monotonic() - self._began:.1f} s"
        text = self._text.splitlines()[0] if self._text else ""
        return f"{frame} {text[: max(0, columns - len(elapsed) - 3)]}{elapsed}"


def counted(say: Callable[[str], None], doing: str, wanted: int) -> Callable[[str, RametError | None], None]:
    """Tells how far work on many has come, for a person who waits."""
    ended = 0

    def count(_name: str, _error: RametError | None) -> None:
        nonlocal ended
        ended += 1
        filled = BAR_WIDTH * ended // wanted
        say(f"{doing} [{'#' * filled}{' ' * (BAR_WIDTH - filled)}] {ended} of {wanted}")

    return count
