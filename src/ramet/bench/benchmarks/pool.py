"""From the request to the first command answered, where forks wait in a pool."""

from __future__ import annotations

from ramet.bench import floor
from ramet.bench.results import Figure, Role, Row, Target, Unit, ratio
from ramet.bench.samples import Sample, alternate, watch
from ramet.bench.source import Source
from ramet.bench.work import Benchmark, Work
from ramet.errors import host_errors
from ramet.linux import procfs
from ramet.model import MemoryPolicy

CLAIM, FLOOR, OWN = "ramet", "floor", "parked-memory"
PARKED = 4
"""How many wait while one is claimed."""
LIMIT = 0.4


def measure(work: Work) -> list[Figure]:
    """Claim a fork of the sleeping guest again and again; the pool is filled up before each."""
    source = work.sleeper()
    work.say(f"pool: forks claimed from {PARKED}")
    try:
        found = alternate([lambda: _claimed(source), lambda: _by_hand(source)], rounds=work.plan.rounds)
    finally:
        source.host.pool(source.name, size=0)
    rows = [
        Row(id=CLAIM, label="Ramet: fork --from-pool, exec true", values=found[CLAIM], against=FLOOR),
        Row(id="ramet-claim", part=True, label="the claim", values=found["ramet-claim"]),
        Row(id="ramet-exec", part=True, label="exec true", values=found["ramet-exec"]),
        Row(id=FLOOR, label="floor: the VMM by hand, thaw, exec true", values=found[FLOOR], role=Role.FLOOR),
        Row(id=OWN, label="own memory of a parked fork's VMM", values=found[OWN], unit=Unit.BYTES),
    ]
    target = Target(
        text="a claim and its first command, against the floor,", limit=LIMIT, measured=ratio(rows, CLAIM, FLOOR)
    )
    return [
        Figure(
            id="pool",
            title=f"a fork claimed from a pool of {PARKED}, to its first command answered",
            setting=f"{source.setting}, {source.memory_policy}",
            rows=rows,
            targets=[target],
            notes=[
                "A claim's guest has a new name and identity and a durable record by then; the floor's has none of these.",
                "A parked guest has run the shell once, outside its workload: what another command is made of is new to the VMM.",
            ],
        )
    ]


def _claimed(source: Source) -> Sample:
    parked = source.host.pool(source.name, size=PARKED, memory_policy=source.memory_policy).parked
    pids = [source.host.get(one).pid for one in parked]
    with host_errors("look at the memory of parked forks"):
        own = max(procfs.own_memory_bytes(procfs.smaps_rollup(pid)) for pid in pids if pid is not None)
    clock = watch()
    (made,) = source.host.fork(source.name, from_pool=True).instances
    try:
        claimed = clock.lap()
        source.host.exec(made.name, ["true"])
        return {CLAIM: clock.total(), "ramet-claim": claimed, "ramet-exec": clock.lap(), OWN: float(own)}
    finally:
        source.host.remove(made.name, force=True)


def _by_hand(source: Source) -> Sample:
    own_memory = source.memory_policy is MemoryPolicy.CLONE
    return {FLOOR: floor.answer_command(source.asleep(own_memory=own_memory), source.place.scratch)["total"]}


BENCHMARK = Benchmark(name="pool", summary="a fork claimed from a pool to its first command answered", measure=measure)
