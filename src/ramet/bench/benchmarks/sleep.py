"""A later sleep: what it writes, and how long it takes, by what the guest has written since it woke."""

from __future__ import annotations

import itertools
import os
import statistics
from pathlib import Path

from ramet.bench.results import Curve, Figure, Plot, Row, Target, Unit
from ramet.bench.samples import Sample, Samples, watch
from ramet.bench.source import AGAIN, Source
from ramet.bench.work import Benchmark, Work
from ramet.errors import host_errors
from ramet.linux import pagemap, procfs
from ramet.model import MIB, Hypervisor, InstanceInfo

LIMIT = 1.05


def measure(work: Work) -> list[Figure]:
    """The guest wakes, writes a contiguous part of its memory anew, and goes back to sleep; bytes are counted in other turns."""
    source = work.sleeper()
    seeds = itertools.count(100)
    found = Samples()
    rows: list[Row] = []
    targets: list[Target] = []
    for mib in work.plan.dirty_mib:
        work.say(f"sleep: after {mib} MiB were written")
        for _ in range(work.plan.slow_rounds + 1):
            found.add(_timed(source, mib, next(seeds)))
            found.add(_accounted(source, mib, next(seeds)))
        rows += [
            Row(id=f"time-{mib}", label=f"{mib} MiB written: sleep", values=found[f"time-{mib}"]),
            Row(id=f"dirty-{mib}", part=True, label="pages dirty", values=found[f"dirty-{mib}"], unit=Unit.BYTES),
            Row(
                id=f"wrote-{mib}",
                part=True,
                label="bytes that the sleep wrote",
                values=found[f"wrote-{mib}"],
                unit=Unit.BYTES,
                against=f"dirty-{mib}",
            ),
        ]
        targets.append(_target(source, mib, found))
    time = Curve(
        label="sleep", points=[(float(mib), statistics.median(found[f"time-{mib}"])) for mib in work.plan.dirty_mib]
    )
    how = "by the VMM, as the manifest has it" if source.hypervisor is Hypervisor.FIRECRACKER else "/proc/self/io"
    return [
        Figure(
            id="sleep",
            title="a later sleep",
            setting=source.setting,
            rows=rows,
            targets=targets,
            plots=[Plot(title="A sleep, by what was written before it", x="MiB", y="s", curves=[time])],
            notes=[
                f"Dirty pages are counted in /proc/PID/pagemap before; bytes written: {how}, sums and records included."
            ],
        )
    ]


def _target(source: Source, mib: int, found: Samples) -> Target:
    dirty, wrote = (statistics.median(found[f"{what}-{mib}"]) for what in ("dirty", "wrote"))
    text, limit = f"bytes written for {mib} MiB, against dirty pages,", LIMIT
    if not source.place.reflinks:
        copied = statistics.median(found[f"copied-{mib}"])
        text = f"{text} where a copy of {copied / MIB:.0f} MiB comes first,"
        limit = round((copied + dirty) / dirty * LIMIT, 3)
    return Target(text=text, limit=limit, measured=wrote / dirty)


def _timed(source: Source, mib: int, seed: int) -> Sample:
    source.host.restore(source.name)
    source.fill(AGAIN, mib, seed)
    os.sync()
    clock = watch()
    source.host.standby(source.name)
    return {f"time-{mib}": clock.total()}


def _accounted(source: Source, mib: int, seed: int) -> Sample:
    """Paused first: nothing is dirtied between the count and the sleep."""
    host = source.host
    host.restore(source.name)
    source.fill(AGAIN, mib, seed)
    info = host.pause(source.name)
    dirty = dirty_bytes(info)
    assert info.mapped_memory is not None
    assert info.live_disk is not None
    with host_errors(f"look at the files of {source.name}"):
        files = (Path(info.mapped_memory.path), Path(info.live_disk))
        copied = sum(path.stat().st_blocks * 512 for path in files)
    before = procfs.bytes_written(os.getpid())
    slept = host.standby(source.name)
    wrote = procfs.bytes_written(os.getpid()) - before
    if source.hypervisor is Hypervisor.FIRECRACKER:
        assert slept.snapshot is not None
        wrote = slept.snapshot.written_bytes
    return {f"dirty-{mib}": float(dirty), f"wrote-{mib}": float(wrote), f"copied-{mib}": float(copied)}


def dirty_bytes(info: InstanceInfo) -> int:
    """Of a paused instance: what its guest has written since it woke, in whole pages.

    Raises:
        HostError: if its VMM cannot be looked at.
    """
    assert info.pid is not None
    assert info.mapped_memory is not None
    with host_errors(f"look at the memory of {info.name}"):
        return sum(
            region.end - region.start
            for mapping in procfs.mappings_of_file(info.pid, Path(info.mapped_memory.path))
            for region in pagemap.written_regions(info.pid, mapping.start, mapping.end)
        )


BENCHMARK = Benchmark(name="sleep", summary="what a later sleep writes, and how long it takes", measure=measure)
