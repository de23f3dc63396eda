"""Many forks of one sleeping guest by one request, until each has answered a command, against as many by hand."""

from __future__ import annotations

import os
import resource
import statistics
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from ramet.bench import floor, raw
from ramet.bench.hand import Asleep
from ramet.bench.results import Curve, Figure, Plot, Role, Row, Target
from ramet.bench.samples import Sample, alternate, percentile, watch
from ramet.bench.source import Source
from ramet.bench.work import Benchmark, Work
from ramet.errors import RametError
from ramet.instances import fan_out
from ramet.linux import procfs
from ramet.model import MemoryPolicy

RAMET, P50, P99 = "ramet", "ramet-p50", "ramet-p99"
LIMIT = 1.25
CPU, IDEAL, BY_HAND = "floor-cpu", "floor-ideal", "floor"


def measure(work: Work) -> list[Figure]:
    """Fork the sleeping guest many times at once, run a command in each, and remove them again; by hand, wake as many.

    Raises:
        RoomError: if they do not fit.
    """
    source, count = work.sleeper(), work.plan.forks
    work.say(f"many: {count} forks at once")
    asleep = source.asleep(own_memory=source.memory_policy is MemoryPolicy.CLONE)
    times: list[float] = []
    found = alternate(
        [
            lambda: _ramet(source, count, times),
            lambda: {BY_HAND: _all_by_hand(asleep, source.place.scratch, count)},
            lambda: {CPU: _cpu_by_hand(asleep, source.place.scratch)},
        ],
        rounds=work.plan.slow_rounds,
    )
    cores = len(os.sched_getaffinity(0))
    ideal = [count * seconds / cores for seconds in found[CPU]]
    rows = [
        Row(id=RAMET, label="Ramet: all have answered", values=found[RAMET], against=IDEAL),
        Row(id=P50, part=True, label="half of them within (p50)", values=found[P50]),
        Row(id=P99, part=True, label="99 % of them within (p99)", values=found[P99]),
        Row(
            id=IDEAL,
            label="floor: CPU time of waking one, times all, on all cores",
            values=ideal,
            role=Role.FLOOR,
        ),
        Row(id=CPU, part=True, label="CPU time of waking one by hand", values=found[CPU], role=Role.FLOOR),
        Row(
            id=BY_HAND,
            label="floor: as many woken by hand, several at a time",
            values=found[BY_HAND],
            role=Role.FLOOR,
            against=IDEAL,
        ),
    ]
    wall = statistics.median(found[RAMET])
    answered = [(seconds, float(number)) for number, seconds in enumerate(sorted(times), start=1)]
    over_time = Curve(label="Ramet", points=answered)
    return [
        Figure(
            id="many",
            title=f"{count} forks at once",
            setting=f"{source.setting}, {source.memory_policy}, {cores} cores",
            rows=rows,
            targets=[
                Target(
                    text=f"{count} forks at once, against the CPU time of as many,",
                    limit=LIMIT,
                    measured=wall / statistics.median(ideal),
                ),
                Target(
                    text=f"{count} forks at once, against as many woken by hand at once,",
                    limit=LIMIT,
                    measured=wall / statistics.median(found[BY_HAND]),
                ),
            ],
            plots=[
                Plot(
                    title="Forks that have answered, over time",
                    x="s",
                    y="",
                    curves=[over_time],
                )
            ],
            notes=["By hand none has a record, an identity or anything durable; all run until the last has answered."],
        )
    ]


def _ramet(source: Source, count: int, last_times: list[float]) -> Sample:
    names = [f"{source.name}-{number}" for number in range(count)]
    times: list[float] = []
    clock = watch()

    def ask(name: str) -> None:
        source.host.exec(name, ["true"])
        times.append(clock.total())

    try:
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            asked: list[Future[None]] = []

            def is_there(name: str, error: RametError | None) -> None:
                if error is not None:
                    raise error
                asked.append(pool.submit(ask, name))

            source.host.fork(source.name, names, start=True, memory_policy=source.memory_policy, on_result=is_there)
            for one in asked:
                one.result()
            seconds = clock.total()
    finally:
        for name in names:
            if source.host.exists(name):
                source.host.remove(name, force=True)
    last_times[:] = times
    return {RAMET: seconds, P50: percentile(times, 0.5), P99: percentile(times, 0.99)}


def _cpu_by_hand(asleep: Asleep, scratch: Path) -> float:
    """Seconds of CPU, ours and the VMM's, from the request to the first command answered."""
    before = _cpu_of_ours()
    with floor.woken(asleep, scratch) as guest:
        guest.agent.run(["true"], raw.THAW)
        return _cpu_of_ours() - before + procfs.cpu_ns(guest.pid) / 1e9


def _all_by_hand(asleep: Asleep, scratch: Path, count: int) -> float:
    """Seconds until the last has answered; each runs until then."""
    clock = watch()
    with ExitStack() as guests:

        def wake(_number: int) -> None:
            guests.enter_context(floor.woken(asleep, scratch)).agent.run(["true"], raw.THAW)

        fan_out.each(range(count), wake, at_once=(os.cpu_count() or 1) + 1)
        return clock.total()


def _cpu_of_ours() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


BENCHMARK = Benchmark(name="many", summary="many forks at once, until each has answered a command", measure=measure)
