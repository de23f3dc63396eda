"""Forks that share their source's memory, against forks that have a clone each: what is read, cached, and their own."""

from __future__ import annotations

import os
import statistics
from pathlib import Path

from bench.measure import Sample, alternate, watch
from bench.report import Row, Table, Target, Unit
from bench.source import READ_ALL, Source
from ramet import process
from ramet.linux import procfs
from ramet.model import InstanceInfo, MemoryPolicy

SECTOR_BYTES = 512
DECISIVE_COUNT = 20
"""Of fewer forks the factor that is promised cannot be expected."""
FACTOR = 10.0
WALL, READ, CACHED, OWN = "until all have read their memory", "read from disk", "of memory in RAM, once per file", "own"


def measure(source: Source, *, count: int, rounds: int) -> list[Table]:
    """Fork a sleeping guest whose files are not in RAM, let each fork read all that was filled, and remove them again."""

    def side(policy: MemoryPolicy) -> Sample:
        return {f"{policy}: {label}": value for label, value in _forked(source, count, policy).items()}

    found = alternate([lambda: side(MemoryPolicy.CLONE), lambda: side(MemoryPolicy.SHARE)], rounds=rounds)
    rows = [
        Row(
            label=f"{policy}: {label}",
            values=found[f"{policy}: {label}"],
            unit=Unit.SECONDS if label == WALL else Unit.BYTES,
            against=f"{MemoryPolicy.CLONE}: {label}" if policy is MemoryPolicy.SHARE else None,
        )
        for label in (WALL, READ, CACHED, OWN)
        for policy in MemoryPolicy
    ]
    targets = [
        Target(
            text=f"{count} forks: {label}, clone against share,",
            limit=FACTOR,
            measured=_median(found[f"clone: {label}"]) / max(_median(found[f"share: {label}"]), 1),
            at_most=False,
        )
        for label in (READ, CACHED)
    ]
    notes = ["Own: what each VMM has in no file, its program's included. Read: by the device that the store is on."]
    title = f"{count} forks read their memory"
    return [
        Table(
            title=title,
            setting=source.setting,
            rows=rows,
            targets=targets if count >= DECISIVE_COUNT else [],
            notes=notes,
        )
    ]


def _median(values: list[float]) -> float:
    return statistics.median(values)


def _forked(source: Source, count: int, policy: MemoryPolicy) -> Sample:
    _forget(source.snapshot_dir())
    before = _read_bytes(source.host.home)
    clock = watch()
    forks = source.host.fork(source.name, count=count, start=True, memory_policy=policy).instances
    try:
        for info in forks:
            source.host.exec(info.name, READ_ALL)
        seconds = clock.total()
        return {
            WALL: seconds,
            READ: _read_bytes(source.host.home) - before,
            CACHED: sum(_memory_files(forks).values()),
            OWN: _median([_own(info) for info in forks]),
        }
    finally:
        for info in forks:
            source.host.remove(info.name, force=True)


def _forget(directory: Path) -> None:
    """Whatever is cached of these files."""
    for path in directory.iterdir():
        with path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read_bytes(place: Path) -> float:
    """What the device of a file system has read since the host booted (sysfs, block/*/stat)."""
    device = place.stat().st_dev
    fields = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat").read_text().split()
    return float(fields[2]) * SECTOR_BYTES


def _memory_files(forks: tuple[InstanceInfo, ...]) -> dict[tuple[str, int], float]:
    """What is in RAM of each file that is a guest's memory, whether it has a name or not."""
    fincore = process.find_program("fincore", package="util-linux")
    found = {}
    for info in forks:
        assert info.mapped_memory is not None
        told = process.run(
            [fincore, "--bytes", "--noheadings", "--output", "RES", info.mapped_memory.path], timeout_s=60
        )
        found[info.mapped_memory.dev, info.mapped_memory.ino] = float(told.stdout)
    return found


def _own(info: InstanceInfo) -> float:
    assert info.pid is not None
    used = procfs.smaps_rollup(info.pid)
    return float(used["Anonymous"] + used.get("Swap", 0))
