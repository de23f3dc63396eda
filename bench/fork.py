"""Forking a sleeping source: by RAM size where there are reflinks, by throughput where there are none."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from bench.floor import clone_or_copy
from bench.measure import Sample, Side, alternate, watch
from bench.report import Row, Table, Target, Unit, ratio
from bench.source import Source
from bench.standby import SYNCED, without_fsync

FORK, COPY = "Ramet: fork", "cp --sparse=always of its memory"
FILES = ("memory", "disk.raw", "vmstate")


def measure(sources: Sequence[Source], *, rounds: int) -> list[Table]:
    """Fork sleeping guests and remove the forks again."""
    if sources[0].place.reflinks:
        return [_by_size(sources, rounds)]
    return [_by_throughput(source, rounds) for source in sources]


def _by_size(sources: Sequence[Source], rounds: int) -> Table:
    def label(source: Source) -> str:
        return f"Ramet: fork of {source.memory_mib} MiB"

    def raw_label(source: Source) -> str:
        return f"floor: FICLONE of its files, {source.memory_mib} MiB"

    def fork(source: Source) -> Sample:
        return {label(source): _fork(source, sync=True)}

    def clone(source: Source) -> Sample:
        return {raw_label(source): _clone(source)}

    sides: list[Side] = []
    for source in sources:
        sides += [partial(fork, source), partial(clone, source)]
    found = alternate(sides, rounds=rounds)
    small, large = sources[0], sources[-1]
    rows = [
        Row(label=label(source), values=found[label(source)], against=None if source is small else label(small))
        for source in sources
    ]
    rows += [Row(label=raw_label(source), values=found[raw_label(source)]) for source in sources]
    targets = []
    if large is not small:
        text = f"a fork of {large.memory_mib} MiB, against one of {small.memory_mib} MiB,"
        targets.append(Target(text=text, limit=1.3, measured=ratio(rows, label(large), label(small))))
    return Table(title="fork of a sleeping source", setting=small.place.setting, rows=rows, targets=targets)


def _by_throughput(source: Source, rounds: int) -> Table:
    def fork(*, sync: bool) -> Sample:
        return {FORK + SYNCED[sync]: _fork(source, sync=sync)}

    def copy(*, sync: bool) -> Sample:
        return {COPY + SYNCED[sync]: _copy(source, sync=sync)}

    sides: list[Side] = []
    for sync in (True, False):
        sides += [partial(fork, sync=sync), partial(copy, sync=sync)]
    found = alternate(sides, rounds=rounds)
    directory = source.snapshot_dir()
    sizes = {FORK: sum(_allocated(directory / name) for name in FILES), COPY: _allocated(directory / "memory")}
    rows = [
        Row(label=what + SYNCED[sync], values=found[what + SYNCED[sync]]) for sync in (True, False) for what in sizes
    ]
    speeds = [
        Row(
            label=f"{what}{SYNCED[sync]}: speed",
            values=[size / seconds for seconds in found[what + SYNCED[sync]]],
            unit=Unit.BYTES_PER_SECOND,
            against=f"{COPY}{SYNCED[sync]}: speed" if what == FORK else None,
        )
        for sync in (True, False)
        for what, size in sizes.items()
    ]
    rows += speeds
    rows += [Row(label=f"{what}: bytes copied", values=[size], unit=Unit.BYTES) for what, size in sizes.items()]
    return Table(
        title="fork of a sleeping source",
        setting=source.setting,
        rows=rows,
        targets=[
            Target(
                text=f"the speed of a fork{SYNCED[sync]}, against cp,",
                limit=0.7,
                measured=ratio(rows, f"{FORK}{SYNCED[sync]}: speed", f"{COPY}{SYNCED[sync]}: speed"),
                at_most=False,
            )
            for sync in (True, False)
        ],
        notes=["Each is divided into the bytes allocated in what it copied: all files for Ramet, memory for cp."],
    )


def _fork(source: Source, *, sync: bool) -> float:
    name = f"{source.name}-fork"
    with nullcontext() if sync else without_fsync():
        clock = watch()
        source.host.fork(source.name, [name])
        seconds = clock.total()
    source.host.remove(name)
    return seconds


def _clone(source: Source) -> float:
    directory = source.snapshot_dir()
    clock = watch()
    made = [source.place.scratch / f"{source.name}.{name}" for name in FILES]
    for path, name in zip(made, FILES, strict=True):
        clone_or_copy(directory / name, path)
    seconds = clock.total()
    for path in made:
        path.unlink()
    return seconds


def _copy(source: Source, *, sync: bool) -> float:
    target = source.place.scratch / f"{source.name}.copy"
    memory = source.snapshot_dir() / "memory"
    clock = watch()
    subprocess.run(["cp", "--sparse=always", str(memory), str(target)], check=True, stdin=subprocess.DEVNULL)
    if sync:
        with target.open("rb") as stream:
            os.fsync(stream.fileno())
    seconds = clock.total()
    target.unlink()
    return seconds


def _allocated(path: Path) -> int:
    return path.stat().st_blocks * 512
