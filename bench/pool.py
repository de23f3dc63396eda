"""From the request to the first command answered, where forks wait in a pool: the claim against one waking by hand."""

from __future__ import annotations

from bench import floor
from bench.measure import Sample, alternate, watch
from bench.report import Row, Table, Target, Unit, ratio
from bench.restore import FLOOR
from bench.source import Source
from ramet.linux import procfs

CLAIM = "Ramet: fork --from-pool, exec true"
OWN_MEMORY = "own memory of a parked fork's VMM"
PARKED = 4
"""How many wait while one is claimed."""
NOTES = (
    "A claim's guest has a new name and identity and a durable record by then; the floor's has none of these.",
    "A parked guest has run the shell once, outside its workload: what another command is made of is new to the VMM.",
)


def measure(source: Source, *, rounds: int) -> list[Table]:
    """Claim from a pool again and again. Leaves the source asleep, and no pool."""
    scratch = source.place.scratch

    def claimed() -> Sample:
        parked = source.host.pool(source.name, size=PARKED).parked
        pids = [source.host.get(one).pid for one in parked]
        own = max(procfs.smaps_rollup(pid)["Anonymous"] for pid in pids if pid is not None)
        clock = watch()
        (made,) = source.host.fork(source.name, from_pool=True).instances
        running = clock.lap()
        source.host.exec(made.name, ["true"])
        found = {CLAIM: clock.total(), "  claim": running, "  exec true": clock.lap(), OWN_MEMORY: float(own)}
        source.host.remove(made.name, force=True)
        return found

    def by_hand() -> Sample:
        return {FLOOR: floor.answer_command(source.asleep(), scratch)["total"]}

    try:
        found = alternate([claimed, by_hand], rounds=rounds)
    finally:
        source.host.pool(source.name, size=0)
    rows = [
        Row(label=CLAIM, values=found[CLAIM], against=FLOOR),
        Row(label="  claim", values=found["  claim"]),
        Row(label="  exec true", values=found["  exec true"]),
        Row(label=FLOOR, values=found[FLOOR]),
        Row(label=OWN_MEMORY, values=found[OWN_MEMORY], unit=Unit.BYTES),
    ]
    target = Target(text="a claim, against the floor with a command,", limit=0.4, measured=ratio(rows, CLAIM, FLOOR))
    return [
        Table(
            title=f"a fork claimed from a pool of {PARKED}, to the first command answered",
            setting=source.setting,
            rows=rows,
            targets=(target,),
            notes=NOTES,
        )
    ]
