"""How long a fork pauses its source, which runs and writes memory all the time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

from ramet.bench.results import Figure, Row
from ramet.bench.samples import Sample, Side, alternate, percentile, watch
from ramet.bench.source import AGAIN, BULK, Source
from ramet.bench.work import Benchmark, Work
from ramet.linux import soft_dirty
from ramet.model import MIB, Hypervisor, MemoryPolicy

AHEAD, WHOLE = "ahead", "whole"
TOTAL = {AHEAD: "fork-ahead", WHOLE: "fork-whole"}
STEADY_MIB = 64
"""Written once, in place of what was filled."""
LOAD = f"""
rm -f {BULK} {AGAIN}
ramet-fill /ram/steady {STEADY_MIB * MIB} 1
while :; do
    ramet-fill /ram/load {4 * MIB} $((turn += 1))
    usleep 50000
done
"""
ROUNDS = 5
"""So many times the plan's: a p99 wants many."""


def measure(work: Work) -> list[Figure]:
    """Fork a running guest under load, in turns with what is copied ahead and with all of it left to the pause."""
    source = work.sleeper()
    work.say("pause: forks of a guest that writes")
    name = f"{source.name}-writes"
    source.host.fork(source.name, [name], start=True, memory_policy=MemoryPolicy.CLONE)
    try:
        source.host.exec(name, ["sh", "-c", f"({LOAD}) >/dev/null 2>&1 &"])
        is_ahead = soft_dirty.are_reliable() and work.hypervisor is Hypervisor.QEMU
        sides: list[Side] = [lambda: _forked(source, name, AHEAD)] if is_ahead else []
        sides.append(lambda: _whole(source, name))
        found = alternate(sides, rounds=work.plan.rounds * ROUNDS)
    finally:
        source.host.remove(name, force=True)
    rows = []
    if is_ahead:
        rows.append(Row(id=AHEAD, label="pause, most copied before it", values=found[AHEAD], against=WHOLE))
        rows.append(_p99(AHEAD, found[AHEAD]))
    rows.append(Row(id=WHOLE, label="pause, all dirty pages copied in it", values=found[WHOLE]))
    rows.append(_p99(WHOLE, found[WHOLE]))
    if is_ahead:
        rows.append(Row(id=TOTAL[AHEAD], label="the whole fork, most copied before", values=found[TOTAL[AHEAD]]))
    rows.append(Row(id=TOTAL[WHOLE], label="the whole fork, all copied in the pause", values=found[TOTAL[WHOLE]]))
    why = (
        "Firecracker writes its dirty pages itself"
        if work.hypervisor is not Hypervisor.QEMU
        else "`ramet doctor` says why"
    )
    return [
        Figure(
            id="pause",
            title="the pause of a source that runs, writes 4 MiB at a time, and is forked",
            setting=source.setting,
            rows=rows,
            notes=[] if is_ahead else [f"Nothing is copied before the pause here: {why}."],
        )
    ]


def _p99(how: str, values: Sequence[float]) -> Row:
    return Row(id=f"{how}-p99", part=True, label="99 % of them within (p99)", values=[percentile(values, 0.99)])


def _forked(source: Source, name: str, how: str) -> Sample:
    clock = watch()
    made = source.host.fork(name, [f"{name}-fork"])
    seconds = clock.total()
    source.host.remove(f"{name}-fork")
    assert made.source_pause_s is not None
    return {how: made.source_pause_s, TOTAL[how]: seconds}


def _whole(source: Source, name: str) -> Sample:
    with _nothing_ahead():
        return _forked(source, name, WHOLE)


@contextmanager
def _nothing_ahead() -> Iterator[None]:
    with mock.patch.object(soft_dirty, "are_reliable", return_value=False):
        yield


BENCHMARK = Benchmark(name="pause", summary="how long a fork pauses a running source that writes", measure=measure)
