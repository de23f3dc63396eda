"""Fifty sleeps, each after a guest has written pages here and there: what forks and sleeps cost then, and the room (H73)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise

from bench.measure import Samples, watch
from bench.report import Row, Table, Target, Unit, ratio
from bench.source import BULK, Say, Source
from ramet.linux import extents
from ramet.model import PAGE_BYTES

PAGES = 1000
ROUNDS = 3
FORK = "a fork, woken, a command answered"
EXTENTS = "extents of the memory file"


def measure(source: Source, say: Say, *, sleeps: Sequence[int]) -> Table:
    """A sleeping guest wakes, writes ``PAGES`` pages of its memory at random, and sleeps again; looked at after ``sleeps``."""
    found = Samples()
    os.sync()
    free_before = _free(source)
    slept = dict(
        zip(sleeps, (f"standby, sleep {low + 1} to {high}" for low, high in pairwise((0, *sleeps))), strict=True)
    )
    for number in range(1, max(sleeps) + 1):
        source.host.restore(source.name)
        source.run("ramet-fill", "--pages", BULK, str(PAGES), str(number))
        clock = watch()
        source.host.standby(source.name)
        found.add({slept[min(one for one in sleeps if number <= one)]: clock.total()})
        if number in sleeps:
            say(f"{source.place.setting}: after {number} sleeps")
            for _ in range(ROUNDS):
                found.add({_after(FORK, number): _fork(source)})
            found.add({_after(EXTENTS, number): _extents(source)})
    os.sync()
    consumed = free_before - _free(source)
    first, last = min(sleeps), max(sleeps)
    rows = [
        *(
            Row(label=label, values=found[label], against=None if n == first else _after(FORK, first))
            for n in sleeps
            for label in [_after(FORK, n)]
        ),
        *(Row(label=slept[n], values=found[slept[n]], against=None if n == first else slept[first]) for n in sleeps),
        *(Row(label=_after(EXTENTS, n), values=found[_after(EXTENTS, n)], unit=Unit.COUNT) for n in sleeps),
        Row(label="free space consumed by all sleeps", values=[float(consumed)], unit=Unit.BYTES),
    ]
    return Table(
        title=f"{last} sleeps, {PAGES} scattered pages written before each",
        setting=source.setting,
        rows=rows,
        targets=[
            Target(
                text=f"a fork and its first command after {last} sleeps, against after {first},",
                limit=1.5,
                measured=ratio(rows, _after(FORK, last), _after(FORK, first)),
            ),
            Target(
                text="free space consumed, against the pages written,",
                limit=2.0,
                measured=consumed / (last * PAGES * PAGE_BYTES),
            ),
        ],
        notes=["Now and then a sleep writes the memory file whole (ramet.snapshots.scatter)."],
    )


def _after(what: str, number: int) -> str:
    return f"{what}, after {number} sleep{'s' if number != 1 else ''}"


def _fork(source: Source) -> float:
    name = f"{source.name}-fork"
    clock = watch()
    source.host.fork(source.name, [name], start=True)
    try:
        source.host.exec(name, ["true"])
        return clock.total()
    finally:
        source.host.remove(name, force=True)


def _extents(source: Source) -> float:
    with (source.snapshot_dir() / "memory").open("rb") as stream:
        return float(extents.count_extents(stream.fileno()))


def _free(source: Source) -> int:
    found = os.statvfs(source.place.directory)
    return found.f_bavail * found.f_frsize
