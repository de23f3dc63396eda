"""The same work for many instances at once, in threads, and its end when one fails or a signal comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import TypeVar

from ramet.errors import RametError
from ramet.signals import signals_held
from ramet.threads import as_they_end

T = TypeVar("T")
R = TypeVar("R")


def each(
    items: Sequence[T],
    action: Callable[[T], R],
    *,
    at_once: int,
    keep_going: bool = False,
    done: Callable[[T, R | RametError], object] = lambda _item, _result: None,
    hurry: Callable[[], object] = lambda: None,
) -> list[R | RametError]:
    """Do ``action`` to all ``items``, ``at_once`` at a time; returns what came of each, in their order.

    ``done`` is told of each as it ends, in this thread. If one fails, those that are not begun are not, unless ``keep_going``.
    Whatever ends it early, Ctrl-C included, this returns when no thread is at work any more; ``hurry`` is called first.

    Raises:
        RametError: the first, unless ``keep_going``.
    """
    found: dict[int, R | RametError] = {}
    with ExitStack() as stack:
        pool = ThreadPoolExecutor(max(min(at_once, len(items)), 1), thread_name_prefix="fan-out")
        # A signal may come on the way to what follows below: nothing more is begun then either.
        stack.callback(pool.shutdown, cancel_futures=True)
        try:
            with signals_held():  # a thread that is half begun is nobody's; a signal that came meanwhile raises here
                futures = {pool.submit(action, item): index for index, item in enumerate(items)}
            for future in as_they_end(futures):
                index = futures[future]
                try:
                    found[index] = future.result()
                except RametError as err:
                    if not keep_going:
                        raise
                    found[index] = err
                done(items[index], found[index])
        except BaseException:
            with signals_held():
                pool.shutdown(wait=False, cancel_futures=True)
                with suppress(RametError):  # it is what ended it that is told
                    hurry()
                pool.shutdown()  # not wait(): it waits for ever for what was cancelled
            raise
    return [found[index] for index in range(len(items))]
