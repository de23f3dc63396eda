"""The signals that end a command, and keeping them waiting over a step that must not be left half done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_Handler = Callable[[int, FrameType | None], Any] | int | None
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def signals_held(*, wake: Callable[[], None] | None = None) -> Iterator[None]:
    """Keep Ctrl-C, SIGTERM and SIGHUP waiting while the block runs, and let them in at its end: for short steps that must not be
    left half done, and for every fork: Python prints and forgets what a handler raises while it runs the hooks of
    ``os.register_at_fork``, of which logging has one. ``wake`` is called when one comes, to end the block soon.

    Handlers are replaced and nothing is blocked: a child would inherit that, and the kernel would hand the signal to another
    thread, so that no system call of the main one is interrupted. Python runs handlers in the main thread alone; in another one
    this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    before: dict[signal.Signals, _Handler] = {}
    is_over = False

    def hold(number: int, frame: FrameType | None) -> None:
        if is_over:  # what the handler raises may have kept us from putting it back
            _pass_on(number, frame, before[signal.Signals(number)])
            return
        arrived.append(number)
        if wake is not None:
            wake()

    try:
        for number in ENDING_SIGNALS:
            handler = signal.getsignal(number)
            if handler not in (None, signal.SIG_IGN):
                before[number] = handler
                signal.signal(number, hold)
        yield
    finally:
        is_over = True
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in arrived:
            signal.raise_signal(late)


def _pass_on(number: int, frame: FrameType | None, handler: _Handler) -> None:
    if callable(handler):
        handler(number, frame)
    else:
        signal.signal(number, handler)
        signal.raise_signal(number)
