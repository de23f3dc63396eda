"""Forks that share their source's memory, against forks that have a clone each: what is read, cached, and their own."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from pathlib import Path

from ramet import helpers
from ramet.bench.device import Device, device_of
from ramet.bench.results import Figure, Row, Target, Unit
from ramet.bench.samples import Sample, alternate, watch
from ramet.bench.source import READ_ALL, Source
from ramet.bench.work import Benchmark, Work
from ramet.errors import host_errors
from ramet.linux import procfs
from ramet.model import InstanceInfo, MemoryPolicy

DECISIVE_COUNT = 20
"""Of fewer forks the factor that is promised cannot be expected."""
FACTOR = 10.0
LABELS = {
    "wall": "until all have read their memory",
    "read": "read from disk",
    "cached": "memory files in RAM, each counted once",
    "own": "own memory of each VMM",
}


def measure(work: Work) -> list[Figure]:
    """Fork a sleeping guest whose files are not in RAM, let each fork read all that was filled, and remove them again.

    Raises:
        UnsupportedError: if forks cannot share memory here.
    """
    source, count = work.sleeper(), work.plan.sharers
    work.say(f"share: {count} forks that read their memory, by either policy")
    device = device_of(source.host.home)

    def side(policy: MemoryPolicy) -> Sample:
        return {f"{policy}-{what}": value for what, value in _forked(source, count, policy, device).items()}

    found = alternate([lambda: side(MemoryPolicy.CLONE), lambda: side(MemoryPolicy.SHARE)], rounds=1)
    rows = [
        Row(
            id=f"{policy}-{what}",
            label=f"{policy}: {label}",
            values=found[f"{policy}-{what}"],
            unit=Unit.SECONDS if what == "wall" else Unit.BYTES,
            against=f"{MemoryPolicy.CLONE}-{what}" if policy is MemoryPolicy.SHARE else None,
        )
        for what, label in LABELS.items()
        for policy in MemoryPolicy
        if f"{policy}-{what}" in found
    ]
    targets = [
        Target(
            text=f"{count} forks: {LABELS[what]}, clone against share,",
            limit=FACTOR,
            measured=_median(found[f"clone-{what}"]) / max(_median(found[f"share-{what}"]), 1),
            at_most=False,
        )
        for what in ("read", "cached")
        if count >= DECISIVE_COUNT and f"clone-{what}" in found
    ]
    notes = ["Own: what each VMM has in no file, its program's included."]
    if device is None:
        notes.append(
            "What is read from disk is not known: the file system is on no block device of its own, or that does not count."
        )
    else:
        notes.append("Read: by the device that the store is on, whoever else uses it.")
    return [
        Figure(
            id="share",
            title=f"{count} forks read their memory",
            setting=source.setting,
            rows=rows,
            targets=targets,
            notes=notes,
        )
    ]


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)


def _forked(source: Source, count: int, policy: MemoryPolicy, device: Device | None) -> Sample:
    os.sync()
    _forget(source.snapshot_dir())
    before = device.read_bytes() if device is not None else 0.0
    clock = watch()
    forks = source.host.fork(source.name, count=count, start=True, memory_policy=policy).instances
    try:
        for info in forks:
            source.host.exec(info.name, READ_ALL)
        found = {"wall": clock.total(), "cached": in_ram(forks), "own": _median([_own(info) for info in forks])}
        return found if device is None else {**found, "read": device.read_bytes() - before}
    finally:
        for info in forks:
            source.host.remove(info.name, force=True)


def _forget(directory: Path) -> None:
    """Whatever is cached of these files."""
    for path in directory.iterdir():
        with host_errors(f"read {path}"), path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def in_ram(forks: Sequence[InstanceInfo]) -> float:
    """What is in RAM of all files that are guests' memories, whether they have a name or not; each file once."""
    fincore = helpers.find_program("fincore", package="util-linux")
    found = {}
    for info in forks:
        assert info.mapped_memory is not None
        told = helpers.run(
            [fincore, "--bytes", "--noheadings", "--output", "RES", info.mapped_memory.path], timeout_s=60
        )
        found[info.mapped_memory.dev, info.mapped_memory.ino] = float(told.stdout)
    return sum(found.values())


def _own(info: InstanceInfo) -> float:
    assert info.pid is not None
    with host_errors(f"look at the memory of {info.name}"):
        return float(procfs.own_memory_bytes(procfs.smaps_rollup(info.pid)))


BENCHMARK = Benchmark(
    name="share", summary="forks that share memory, against forks that have a clone each", measure=measure
)
