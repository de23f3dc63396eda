"""Many forks of one sleeping guest by one command, until each has answered a command, against as many by hand."""

from __future__ import annotations

import os
import resource
import statistics
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from bench import raw
from bench.floor import Asleep, woken
from bench.measure import Sample, alternate, percentile, watch
from bench.report import Row, Table, Target, Unit
from bench.source import Source
from ramet.errors import RametError
from ramet.hypervisors.qemu import driver
from ramet.linux import procfs

ANSWERED = "Ramet: all have answered"
HALF, LATE = "  half of them within", "  99 % of them within"
CPU = "floor: CPU time of waking one by hand"
IDEAL = "floor: that for all, on all cores"
BY_HAND = "floor: as many woken by hand, several at a time"


def measure(source: Source, *, count: int, rounds: int) -> list[Table]:
    """Fork a sleeping guest ``count`` times, wake all, run a command in each, and remove them again; by hand, wake as many."""
    asleep = source.asleep(own_memory=not driver.opens_memory_read_only(driver.program()))
    own: list[float] = []

    def ramet() -> Sample:
        return _ramet(source, count, own)

    def by_hand() -> Sample:
        return {CPU: _cpu_by_hand(asleep, source.place.scratch)}

    def all_by_hand() -> Sample:
        return {BY_HAND: _all_by_hand(asleep, source.place.scratch, count)}

    found = alternate([ramet, all_by_hand, by_hand], rounds=rounds)
    ideal = [count * seconds / (os.cpu_count() or 1) for seconds in found[CPU]]
    wall = statistics.median(found[ANSWERED]) / statistics.median(ideal)
    return [
        Table(
            title=f"{count} forks at once",
            setting=source.setting,
            rows=[
                Row(label=ANSWERED, values=found[ANSWERED], against=BY_HAND),
                Row(label=HALF, values=found[HALF]),
                Row(label=LATE, values=found[LATE]),
                Row(label=BY_HAND, values=found[BY_HAND], against=IDEAL),
                Row(label=CPU, values=found[CPU]),
                Row(label=IDEAL, values=ideal),
                Row(label="memory of its own, of a fork that has run one command", values=own, unit=Unit.BYTES),
            ],
            targets=[
                Target(text=f"{count} forks at once, against the CPU time of as many,", limit=1.25, measured=wall)
            ],
            notes=[
                "By hand none has a record, an identity or anything durable; all run until the last has answered, as Ramet's do.",
                "Memory: of its guest alone; the VMM's own is not in it.",
            ],
        )
    ]


def _ramet(source: Source, count: int, own: list[float]) -> Sample:
    names = [f"{source.name}-{number}" for number in range(count)]
    times: list[float] = []
    clock = watch()

    def answered(name: str, error: RametError | None) -> None:
        if error is not None:
            raise error
        source.host.exec(name, ["true"])
        times.append(clock.total())

    source.host.fork(source.name, names, start=True, on_result=answered)
    seconds = clock.total()
    try:
        own += [_own_guest_memory(source, name) for name in names[:4]]
    finally:
        for name in names:
            source.host.remove(name, force=True)
    return {ANSWERED: seconds, HALF: percentile(times, 0.5), LATE: percentile(times, 0.99)}


def _own_guest_memory(source: Source, name: str) -> float:
    """Private anonymous pages of the mapping of its memory file, in bytes."""
    info = source.host.get(name)
    assert info.pid is not None
    assert info.mapped_memory is not None
    mappings = {mapping.start for mapping in procfs.mappings_of_file(info.pid, Path(info.mapped_memory.path))}
    found, inside = 0, False
    for line in Path(f"/proc/{info.pid}/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first and not first.endswith(":"):
            inside = int(first.partition("-")[0], 16) in mappings
        elif inside and first in ("Anonymous:", "Swap:"):
            found += int(rest[0]) * 1024
    return float(found)


def _cpu_by_hand(asleep: Asleep, scratch: Path) -> float:
    """Seconds of CPU, ours and the VMM's, from the request to the first command answered."""
    before = _cpu_of_ours()
    with woken(asleep, scratch) as guest:
        guest.agent.run(["true"], raw.THAW)
        return _cpu_of_ours() - before + _cpu_of(guest.pid)


def _all_by_hand(asleep: Asleep, scratch: Path, count: int) -> float:
    """Seconds until the last has answered; each runs until then."""
    clock = watch()
    with ExitStack() as guests, ThreadPoolExecutor((os.cpu_count() or 1) + 1) as pool:

        def wake(_number: int) -> None:
            guests.enter_context(woken(asleep, scratch)).agent.run(["true"], raw.THAW)

        for _ in pool.map(wake, range(count)):
            pass
        return clock.total()


def _cpu_of_ours() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _cpu_of(pid: int) -> float:
    line = Path(f"/proc/{pid}/stat").read_text()
    fields = line[line.rindex(")") + 2 :].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
