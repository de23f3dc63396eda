"""Samples: sides taken in turns, so that drift of the host meets all of them alike, and what is said of them afterwards."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Sample = Mapping[str, float]
"""What one turn of one side measured: name to value, seconds or bytes."""
Side = Callable[[], Sample]


class Samples(dict[str, list[float]]):
    """All values of each name, in the order in which they were taken."""

    def add(self, sample: Sample) -> None:
        """One turn's values."""
        for name, value in sample.items():
            self.setdefault(name, []).append(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Median, extremes and number of samples."""

    median: float
    low: float
    high: float
    count: int


def summarize(values: Sequence[float]) -> Summary:
    """The summary of at least one value."""
    return Summary(median=statistics.median(values), low=min(values), high=max(values), count=len(values))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of all values do not exceed (nearest rank)."""
    ordered = sorted(values)
    rank = -(-len(ordered) * share // 1)
    return ordered[max(int(rank), 1) - 1]


def alternate(sides: Sequence[Side], *, rounds: int) -> Samples:
    """Take every side once a round, ``rounds`` times; each round begins with another side (A B C, B C A, ...).

    Before each turn everything dirty is written back: nobody pays for what the one before has left in the page cache.
    """
    found = Samples()
    for number in range(rounds):
        for step in range(len(sides)):
            os.sync()
            found.add(sides[(number + step) % len(sides)]())
    return found


@dataclass(slots=True)
class Watch:
    """A running clock: ``lap()`` is the time since the last lap, ``total()`` since the start, in seconds."""

    began: float
    last: float

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.perf_counter()
        passed, self.last = now - self.last, now
        return passed

    def total(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.began


def watch() -> Watch:
    """A clock that starts now."""
    now = time.perf_counter()
    return Watch(began=now, last=now)
