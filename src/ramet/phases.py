"""How long the parts of a verb take: logged for whoever looks, which are ``ramet --debug`` and the benchmark of one fork."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger("ramet.phases")


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Log at its end how long the block took, however it ends."""
    began = time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - began
        log.debug("%s: %.1f ms", name, seconds * 1000, extra={"phase": name, "seconds": seconds})


class _Listener(logging.Handler):
    def __init__(self, found: dict[str, float]) -> None:
        super().__init__(logging.DEBUG)
        self._found = found

    def emit(self, record: logging.LogRecord) -> None:
        name, seconds = getattr(record, "phase", None), getattr(record, "seconds", None)
        if isinstance(name, str) and isinstance(seconds, float):
            self._found[name] = self._found.get(name, 0.0) + seconds


_listening = threading.RLock()


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Yields what the phases of the block took, of all threads: seconds by name, added up. One thread measures at a time."""
    found: dict[str, float] = {}
    listener = _Listener(found)
    with _listening:
        level = log.level
        log.addHandler(listener)
        log.setLevel(logging.DEBUG)
        try:
            yield found
        finally:
            log.setLevel(level)
            log.removeHandler(listener)
