"""The signals that end a command, and keeping them waiting over a step that must not be left half done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def signals_held(*, wake: Callable[[], None] | None = None) -> Iterator[None]:
    """Keep Ctrl-C, SIGTERM and SIGHUP waiting while the block runs, and let them in at its end: for short steps that must not be
    left half done, and for every fork: Python prints and forgets what a handler raises while it runs the hooks of
    ``os.register_at_fork``, of which logging has one. ``wake`` is called when one comes, to end the block soon.

    Handlers are replaced and nothing is blocked: a child would inherit that. Python runs handlers in the main thread alone; in
    another one this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []

    def hold(number: int, _frame: object) -> None:
        arrived.append(number)
        if wake is not None:
            wake()

    before = {}
    try:
        for number in ENDING_SIGNALS:
            handler = signal.getsignal(number)
            if handler not in (None, signal.SIG_IGN):
                before[number] = handler
                signal.signal(number, hold)
        yield
    finally:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)  # what a handler raises must not cut this off
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for late in arrived:
            signal.raise_signal(late)
