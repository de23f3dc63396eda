"""Signals that the tests were started with as ignored."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def heeded() -> Iterator[None]:
    """nohup(1), and ``&`` in a script, start us with signals ignored, and execve(2) hands that on to every child: there is a test
    that waits for the end of one. A handler is not handed on. Those set here do nothing, so that a hangup still ends nobody; but
    SIGINT, which tests send to themselves, has Python's.
    """
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: _nothing, signal.SIGTERM: _nothing}
    ignored = [number for number in handlers if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, handlers[number])
    try:
        yield
    finally:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)


def _nothing(_number: int, _frame: FrameType | None) -> None: ...
