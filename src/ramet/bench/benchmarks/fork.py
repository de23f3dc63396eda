"""One fork request to the first command answered in the fork: Ramet, the raw mechanism, and what copies the same files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ramet import helpers, phases
from ramet.bench import floor, hand, peers
from ramet.bench.results import Figure, Role, Row, Target, ratio
from ramet.bench.samples import Sample, Side, alternate, watch
from ramet.bench.source import Source
from ramet.bench.work import Benchmark, Work
from ramet.model import MemoryPolicy

RAMET, ALONE, FLOOR, CLONE = "ramet", "ramet-asleep", "floor", "floor-files"
COPIES = {peers.REFLINK: "cp-reflink", peers.SPARSE: "cp-sparse"}
FILES = ("memory", "disk.raw", "vmstate")
COPY_S = 600.0
LIMIT = 1.15
COMMAND, REST = "command", "rest"
PHASES = {
    "derive": "its snapshot and record, durable",
    "live files": "the files that its VMM opens",
    "start": "start the VMM, confined",
    "load": "load the device state",
    "resume": "resume",
    "first answer": "until its agent answers",
    "identity": "its identity",
    "record": "that it runs, durable",
    "thaw": "thaw",
    REST: "the rest: locks, checks, what is told",
    COMMAND: "exec true",
}
"""Of a fork, in their order, as they are logged (phases.py), and what they are called in the report."""


def measure(work: Work) -> list[Figure]:
    """Fork a sleeping guest and remove the fork again."""
    source = work.sleeper()
    work.say("fork: one after the other")
    sides: list[Side] = [
        lambda: _answered(source),
        lambda: _by_hand(source),
        lambda: {ALONE: _asleep(source)},
        lambda: {CLONE: _clone(source)},
    ]
    copies = [name for name in COPIES if name in work.peers]
    sides += [partial(_copy, source, name) for name in copies]
    found = alternate(sides, rounds=work.plan.rounds)
    rows = [
        Row(id=RAMET, label="Ramet: fork, wake, exec true", values=found[RAMET], against=FLOOR),
        *(
            Row(id=_row_of(name), part=True, label=label, values=found[_row_of(name)])
            for name, label in PHASES.items()
            if _row_of(name) in found
        ),
        Row(id=FLOOR, label="floor: the VMM by hand, thaw, exec true", values=found[FLOOR], role=Role.FLOOR),
        *(
            Row(id=f"floor-{step}", part=True, label=f"{step}", values=found[step], role=Role.FLOOR)
            for step in floor.STEPS
        ),
        Row(id=ALONE, label="Ramet: fork that sleeps on", values=found[ALONE], against=CLONE),
        Row(id=CLONE, label="floor: its files cloned or copied", values=found[CLONE], role=Role.FLOOR),
        *(
            Row(
                id=COPIES[name], label=f"{name} of its files", values=found[COPIES[name]], role=Role.PEER, against=ALONE
            )
            for name in copies
        ),
    ]
    return [
        Figure(
            id="fork",
            title="one fork request to its first command answered",
            setting=f"{source.setting}, {source.memory_policy}",
            rows=rows,
            targets=[
                Target(
                    text="a fork and its first command, against the floor,",
                    limit=LIMIT,
                    measured=ratio(rows, RAMET, FLOOR),
                )
            ],
            notes=[
                "Ramet's fork has an identity of its own and a durable record by then; the floor's has neither.",
                "The first command of a guest that just woke under emulation is slow for everybody: its code is translated anew.",
            ],
        )
    ]


def _name(source: Source) -> str:
    return f"{source.name}-fork"


def _answered(source: Source) -> Sample:
    name = _name(source)
    clock = watch()
    with phases.measured() as taken:
        source.host.fork(source.name, [name], start=True, memory_policy=source.memory_policy)
    try:
        forked = clock.lap()
        source.host.exec(name, ["true"])
        total = clock.total()
    finally:
        source.host.remove(name, force=True)
    rest = {COMMAND: total - forked, REST: forked - sum(taken.values())}
    return {RAMET: total, **{_row_of(phase): seconds for phase, seconds in {**taken, **rest}.items()}}


def _row_of(phase: str) -> str:
    return f"ramet-{phase.replace(' ', '-')}"


def _by_hand(source: Source) -> Sample:
    own_memory = source.memory_policy is MemoryPolicy.CLONE
    found = floor.answer_command(source.asleep(own_memory=own_memory), source.place.scratch)
    return {FLOOR: found["total"], **{step: found[step] for step in floor.STEPS}}


def _asleep(source: Source) -> float:
    name = _name(source)
    clock = watch()
    source.host.fork(source.name, [name], memory_policy=source.memory_policy)
    seconds = clock.total()
    source.host.remove(name, force=True)
    return seconds


def _clone(source: Source) -> float:
    made = _targets(source)
    clock = watch()
    for src, dst in made:
        hand.clone_or_copy(src, dst)
    return _removed(made, clock.total())


def _copy(source: Source, peer: str) -> Sample:
    program, option = peer.split()
    made = _targets(source)
    clock = watch()
    for src, dst in made:
        helpers.run([program, option, str(src), str(dst)], timeout_s=COPY_S)
    return {COPIES[peer]: _removed(made, clock.total())}


def _targets(source: Source) -> Sequence[tuple[Path, Path]]:
    directory = source.snapshot_dir()
    return [(directory / name, source.place.scratch / f"{source.name}.{name}") for name in FILES]


def _removed(made: Sequence[tuple[Path, Path]], seconds: float) -> float:
    for _, path in made:
        path.unlink()
    return seconds


BENCHMARK = Benchmark(name="fork", summary="one fork request to its first command answered", measure=measure)
