"""Run by test_threads.py, as a process of its own, for it hangs where it fails: threads are waited for, and a signal comes before
each line of Python that this takes, one at a time. Prints before how many.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from types import FrameType
from typing import Any

from ramet.signals import signals_held
from ramet.threads import as_they_end

WORK_S = 0.002
WAITS: dict[str, Callable[[list[Future[None]]], Iterator[Future[None]]]] = {
    "as_they_end": as_they_end,
    "as_completed": as_completed,
}
wait = WAITS[sys.argv[1]]


class EndedError(KeyboardInterrupt):
    """What a handler raises."""


def end(_number: int, _frame: FrameType | None) -> None:
    raise EndedError


def lines_seen(pool: ThreadPoolExecutor, at: int | None) -> int:
    """Wait for two threads; a signal comes at one of the lines."""
    seen = 0

    def trace(frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal seen
        if event == "line" and frame.f_code.co_filename != __file__:
            seen += 1
            if seen == at:
                sys.settrace(None)
                signal.raise_signal(signal.SIGTERM)
        return trace

    with signals_held():
        futures = [pool.submit(time.sleep, WORK_S) for _ in range(2)]
    sys.settrace(trace)
    try:
        for _ in wait(futures):
            pass
    except EndedError:
        pass
    finally:
        sys.settrace(None)
        with signals_held():
            pool.shutdown()
    return seen


signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGINT, signal.SIG_DFL)
last = lines_seen(ThreadPoolExecutor(2), None)
for number in range(1, last + 1):
    lines_seen(ThreadPoolExecutor(2), number)
print(last)
