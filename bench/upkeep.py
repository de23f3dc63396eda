"""What the sums of pages cost of a sleep: the same with no page hashed."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from unittest import mock

from ramet.bench.results import Figure, Row, Target, ratio
from ramet.bench.samples import Sample, alternate, watch
from ramet.bench.source import AGAIN
from ramet.bench.work import Benchmark, Work
from ramet.snapshots import sums

HASHED, UNHASHED = "standby", "standby, no page hashed"
SNAPSHOT = "bench-base"


def measure(work: Work) -> list[Figure]:
    """The guest wakes from the same snapshot again and again, writes, and sleeps. Leaves it asleep."""
    source = work.sleeper()
    mib = max(work.plan.dirty_mib)
    seed = count(10**6)
    base = source.host.snapshot_create(source.name, SNAPSHOT).id

    def turn(what: str, without: AbstractContextManager[object]) -> Sample:
        source.host.restore(source.name, snapshot=base)  # whose sums are right: what comes of the other side's are not
        source.fill(AGAIN, mib, next(seed))
        os.sync()
        with without:
            clock = watch()
            source.host.standby(source.name)
            return {what: clock.total()}

    try:
        found = alternate(
            [
                lambda: turn(UNHASHED, mock.patch.object(sums, "update", return_value="")),
                lambda: turn(HASHED, nullcontext()),
            ],
            rounds=2 * work.plan.slow_rounds,
        )
    finally:
        source.put_to_sleep()
        source.host.restore(source.name, snapshot=base)
        source.host.standby(source.name)
        source.host.snapshot_remove(SNAPSHOT)
    rows = [
        Row(id="unhashed", label=UNHASHED, values=found[UNHASHED]),
        Row(id="hashed", label=HASHED, values=found[HASHED], against="unhashed"),
    ]
    limit = Target(
        text="a sleep with sums, against one without,", limit=1.1, measured=ratio(rows, "hashed", "unhashed")
    )
    title = f"sums of {mib} MiB that were written"
    return [Figure(id="upkeep", title=title, setting=source.setting, rows=rows, targets=[limit])]


BENCHMARK = Benchmark(name="upkeep", summary="what the sums of pages cost of a sleep", measure=measure)
