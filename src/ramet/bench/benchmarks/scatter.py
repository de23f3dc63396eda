"""Many sleeps, each after a guest has written pages here and there: what forks and sleeps cost then, and the room (H73)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise

from ramet import process
from ramet.bench.results import Curve, Figure, Plot, Row, Target, Unit, ratio
from ramet.bench.samples import Samples, watch
from ramet.bench.source import BULK, Source
from ramet.bench.work import Benchmark, Work
from ramet.errors import host_errors
from ramet.linux import extents
from ramet.model import PAGE_BYTES

PAGES = 1000
ROUNDS = 3
SETTLE_S = 5.0


def measure(work: Work) -> list[Figure]:
    """The sleeping guest wakes, writes ``PAGES`` pages of its memory at random, and sleeps again. Leaves its memory scattered.

    Raises:
        UnsupportedError: without reflinks.
    """
    work.place.require_reflinks("Without them each sleep writes the memory file anew, and nothing is ever scattered.")
    source, sleeps = work.sleeper(), work.plan.sleeps
    found = Samples()
    slept: list[float] = []
    free_before = _free(source)
    for number in range(1, max(sleeps) + 1):
        if number == 1 or number % 10 == 0:
            work.say(f"scatter: sleep {number} of {max(sleeps)}")
        source.host.restore(source.name)
        source.run("ramet-fill", "--pages", BULK, str(PAGES), str(number))
        clock = watch()
        source.host.standby(source.name)
        slept.append(clock.total())
        if number in sleeps:
            for _ in range(ROUNDS):
                found.add({f"fork-{number}": _fork(source)})
            found.add({f"extents-{number}": _extents(source)})
    return [_figure(source, sleeps, found, slept, free_before - _free(source))]


def _figure(source: Source, sleeps: Sequence[int], found: Samples, slept: Sequence[float], consumed: int) -> Figure:
    first, last = min(sleeps), max(sleeps)
    spans = [(low, high) for low, high in pairwise((0, *sleeps))]
    rows = [
        *(
            Row(
                id=f"fork-{number}",
                label=f"a fork, woken, a command answered, after sleep {number}",
                values=found[f"fork-{number}"],
                against=None if number == first else f"fork-{first}",
            )
            for number in sleeps
        ),
        *(
            Row(
                id=f"sleep-{high}",
                label=f"sleep {low + 1} to {high}" if high > low + 1 else f"sleep {high}",
                values=slept[low:high],
                against=None if high == first else f"sleep-{first}",
            )
            for low, high in spans
        ),
        *(
            Row(
                id=f"extents-{number}",
                label=f"extents of the memory file, after sleep {number}",
                values=found[f"extents-{number}"],
                unit=Unit.COUNT,
            )
            for number in sleeps
        ),
        Row(id="room", label="free space consumed by all sleeps", values=[float(consumed)], unit=Unit.BYTES),
    ]
    return Figure(
        id="scatter",
        title=f"{last} sleeps, {PAGES} scattered pages written before each",
        setting=source.setting,
        rows=rows,
        targets=[
            Target(
                text=f"a fork and its first command after {last} sleeps, against after {first},",
                limit=1.5,
                measured=ratio(rows, f"fork-{last}", f"fork-{first}"),
            ),
            Target(
                text="free space consumed, against the pages written,",
                limit=2.0,
                measured=consumed / (last * PAGES * PAGE_BYTES),
            ),
        ],
        plots=[
            Plot(
                title="Each sleep, in their order",
                x="",
                y="s",
                curves=[Curve(label="sleep", points=[(float(n), value) for n, value in enumerate(slept, start=1)])],
            )
        ],
        notes=["Now and then a sleep writes the memory file whole, so that it never lies in too many places."],
    )


def _fork(source: Source) -> float:
    name = f"{source.name}-fork"
    clock = watch()
    source.host.fork(source.name, [name], start=True, memory_policy=source.memory_policy)
    try:
        source.host.exec(name, ["true"])
        return clock.total()
    finally:
        source.host.remove(name, force=True)


def _extents(source: Source) -> float:
    path = source.snapshot_dir() / "memory"
    with host_errors(f"look at {path}"), path.open("rb") as stream:
        return float(extents.count_extents(stream.fileno()))


def _free(source: Source) -> int:
    """What is free once it no longer changes: a file system gives what was deleted back a little later (XFS, inodegc)."""
    last = -1

    def settled() -> int | None:
        nonlocal last
        os.sync()
        found = os.statvfs(source.place.directory)
        before, last = last, found.f_bavail * found.f_frsize
        return last if last == before else None

    try:
        return process.wait_until(settled, SETTLE_S, what="free space that does not change")
    except TimeoutError:
        return last  # others write to this file system too


BENCHMARK = Benchmark(
    name="scatter", summary="sleeps after scattered writes, and what forks cost after them", measure=measure
)
