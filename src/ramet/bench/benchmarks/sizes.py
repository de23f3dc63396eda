"""Forks, wakes and sleeps by how much RAM the guest has dirtied: what is to stay flat, and what is to follow it."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable

from ramet.bench.results import Curve, Figure, Plot, Row, Target, ratio
from ramet.bench.samples import Sample, Samples, alternate, watch
from ramet.bench.source import BULK, GUEST_TIMEOUT_S
from ramet.bench.work import Benchmark, Work
from ramet.errors import GuestError, NoSpaceError
from ramet.linux import memory
from ramet.model import MIB

RESERVE_MIB = 1024
"""Of the host's memory, what a guest is not given."""
FORK, RESTORE, SLEEP = "fork", "restore", "sleep"
LABELS = {FORK: "fork, wake, exec true", RESTORE: "restore, exec true", SLEEP: "first sleep"}
FLAT = 1.3


def measure(work: Work) -> list[Figure]:
    """For each size a guest of its own is booted, dirties as much, sleeps, is forked and woken again and again, and goes.

    Raises:
        NoSpaceError: if there is room for none of the sizes.
    """
    found = Samples()
    done: list[int] = []
    notes = ["Each guest has what it dirties, and what a kernel needs besides."]
    for mib in work.plan.sizes_mib:
        why_not = _why_not(work, mib)
        if why_not is not None:
            notes.append(f"Not measured: {mib} MiB dirtied: {why_not}.")
            continue
        work.say(f"sizes: a guest that dirties {mib} MiB")
        _one(work, mib, found)
        done.append(mib)
    if not done:
        raise NoSpaceError(notes[1], hint="Free some memory, or some room in RAMET_HOME.")
    return [_figure(work, done, found, notes)]


def _memory_mib(dirty_mib: int) -> int:
    return dirty_mib + dirty_mib // 16 + 192


def _why_not(work: Work, mib: int) -> str | None:
    available = memory.available_bytes() // MIB
    if available < _memory_mib(mib) + RESERVE_MIB:
        return f"it takes {_memory_mib(mib) + RESERVE_MIB} MiB of memory, and {available} are free"
    disk = os.statvfs(work.place.directory)
    free = disk.f_bavail * disk.f_frsize // MIB
    files = 3 if work.place.reflinks else 4
    if free < files * _memory_mib(mib):
        return f"it takes {files * _memory_mib(mib)} MiB of disk, and {free} are free"
    return None


def _one(work: Work, mib: int, found: Samples) -> None:
    host, name = work.place.host, f"bench-dirty{mib}"
    host.create(name, memory_mib=_memory_mib(mib), hypervisor=work.hypervisor)
    try:
        filled = host.exec(name, ["ramet-fill", BULK, str(mib * MIB), "1"], timeout_s=GUEST_TIMEOUT_S)
        if filled.exit_status != 0:
            told = filled.stderr.decode(errors="replace").strip()
            raise GuestError(f"The guest could not fill {mib} MiB: {told}")
        clock = watch()
        host.standby(name)
        found.add({f"{SLEEP}-{mib}": clock.total()})

        def forked() -> Sample:
            clock = watch()
            host.fork(name, [f"{name}-fork"], start=True, memory_policy=work.memory_policy)
            try:
                host.exec(f"{name}-fork", ["true"])
                return {f"{FORK}-{mib}": clock.total()}
            finally:
                host.remove(f"{name}-fork", force=True)

        def restored() -> Sample:
            clock = watch()
            host.restore(name)
            host.exec(name, ["true"])
            seconds = clock.total()
            host.standby(name)
            return {f"{RESTORE}-{mib}": seconds}

        for label, values in alternate([forked, restored], rounds=work.plan.slow_rounds + 1).items():
            for value in values:
                found.add({label: value})
    finally:
        host.remove(name, force=True)


def _figure(work: Work, done: list[int], found: Samples, notes: list[str]) -> Figure:
    first, last = done[0], done[-1]
    rows = [
        Row(
            id=f"{what}-{mib}",
            label=f"{mib} MiB dirtied: {LABELS[what]}",
            values=found[f"{what}-{mib}"],
            against=None if mib == first else f"{what}-{first}",
        )
        for what in LABELS
        for mib in done
    ]
    targets = []
    if last != first and work.place.reflinks:
        text = f"a fork of {last} dirtied MiB, against one of {first},"
        targets.append(Target(text=text, limit=FLAT, measured=ratio(rows, f"{FORK}-{last}", f"{FORK}-{first}")))
    method = "reflink" if work.place.reflinks else "copy"
    return Figure(
        id="sizes",
        title="by how much RAM is dirty",
        setting=f"{method}, {work.memory_policy}",
        rows=rows,
        targets=targets,
        plots=[
            Plot(
                title="Until the first command is answered, by what the guest had dirtied",
                x="MiB",
                y="s",
                curves=[_curve(what, done, found) for what in (FORK, RESTORE)],
            )
        ],
        notes=notes,
    )


def _curve(what: str, done: Iterable[int], found: Samples) -> Curve:
    return Curve(label=LABELS[what], points=[(float(mib), statistics.median(found[f"{what}-{mib}"])) for mib in done])


BENCHMARK = Benchmark(name="sizes", summary="forks, wakes and first sleeps by how much RAM is dirty", measure=measure)
