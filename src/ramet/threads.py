"""Work in threads, waited for by a main thread to which a signal's handler may raise at any moment."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import TypeVar

from ramet.signals import signals_held

T = TypeVar("T")
SIGNALS_HEARD_S = 0.2


def as_they_end(futures: Collection[Future[T]]) -> Iterator[Future[T]]:
    """Futures that have been submitted, each once it is done. Ctrl-C ends the wait, and nothing else.

    A handler raises between any two steps of Python code. In those of ``concurrent.futures`` that wait, this may be after a lock
    was taken and before the block that gives it back: the thread at work then waits for that lock for ever, and whoever joins it
    too. So they are called with signals held, and what is waited on is a queue in C, which has no such place.

    Python looks for signals before it blocks: one that comes in between is not heard before the wait ends, so that is short.
    """
    ended: SimpleQueue[Future[T]] = SimpleQueue()
    with signals_held():
        for future in futures:
            future.add_done_callback(ended.put)
    for _ in futures:
        while True:
            try:
                one = ended.get(timeout=SIGNALS_HEARD_S)
            except Empty:
                continue
            break
        yield one
