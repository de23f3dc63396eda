"""Going to sleep: the first time against a migration to a file, and later by dirty pages and by RAM size."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from unittest import mock

from bench import stream
from bench.measure import Sample, Side, alternate, watch
from bench.report import Row, Table, Target, Unit, ratio
from bench.source import AGAIN, Source
from ramet.linux import pagemap, procfs
from ramet.model import PAGE_BYTES
from ramet.snapshots import sums

CAPTURE, MIGRATE, STANDBY = "Ramet: full snapshot", "QEMU: migrate to a file", "Ramet: standby itself"
HASHED, UNHASHED = "standby", "standby, no page hashed"
SYNCED = {True: ", fsynced", False: ", no fsync"}


@contextmanager
def without_fsync() -> Iterator[None]:
    """Make Ramet's fsyncs do nothing, to see what they cost."""
    with mock.patch.object(os, "fsync"), mock.patch.object(os, "fdatasync"):
        yield


def first(source: Source, *, rounds: int) -> Table:
    """A booted guest is saved whole, by both, again and again; then it goes to sleep. Keeps the peer's stream."""
    sides: list[Side] = []
    for sync in (True, False):
        sides += [partial(_capture, source, sync=sync), partial(_migrate, source, sync=sync)]
    alternate(sides, rounds=1)  # the first to write to a block of a loop device is slower: it does not count
    found = alternate(sides, rounds=rounds)
    _save_stream(source, sync=False)
    os.sync()
    clock = watch()
    source.host.standby(source.name)
    found.add({STANDBY: clock.total()})
    rows = [
        Row(
            label=what + SYNCED[sync],
            values=found[what + SYNCED[sync]],
            against=MIGRATE + SYNCED[sync] if what == CAPTURE else None,
        )
        for sync in (True, False)
        for what in (CAPTURE, MIGRATE)
    ]
    rows.append(Row(label=STANDBY, values=found[STANDBY]))
    return Table(
        title="first standby",
        setting=source.setting,
        rows=rows,
        targets=[
            Target(
                text=f"a full snapshot{SYNCED[sync]}, against a migration,",
                limit=1.0,
                measured=ratio(rows, CAPTURE + SYNCED[sync], MIGRATE + SYNCED[sync]),
            )
            for sync in (True, False)
        ],
        notes=[
            "Ramet's time has the freeze and the thaw of the guest, its disk and the manifest in it; QEMU's has memory alone."
        ],
    )


def _capture(source: Source, *, sync: bool) -> Sample:
    clock = watch()
    if sync:
        source.host.snapshot_create(source.name, "bench-full")
    else:
        with without_fsync():
            source.host.snapshot_create(source.name, "bench-full")
    seconds = clock.total()
    source.host.snapshot_remove("bench-full")
    return {CAPTURE + SYNCED[sync]: seconds}


def _migrate(source: Source, *, sync: bool) -> Sample:
    seconds = _save_stream(source, sync=sync)
    source.stream.unlink()  # as the full snapshot is removed: the next side finds as much memory free
    return {MIGRATE + SYNCED[sync]: seconds}


def _save_stream(source: Source, *, sync: bool) -> float:
    info = source.host.get(source.name)
    assert info.live_disk is not None
    return stream.save(Path(info.run_dir), Path(info.live_disk), source.stream, sync=sync)


def later(sources: Sequence[Source], *, dirty_mib: Sequence[int], rounds: int) -> list[Table]:
    """Sleeping guests wake, write some of their memory again, and go back to sleep."""
    largest = sources[-1]
    return [
        _time(sources, dirty_mib, rounds),
        _upkeep(largest, max(dirty_mib), rounds),
        *(_bytes(source, dirty_mib) for source in sources),
    ]


def _label(source: Source, mib: int) -> str:
    return f"{source.memory_mib} MiB guest, {mib} MiB written"


def _time(sources: Sequence[Source], dirty_mib: Sequence[int], rounds: int) -> Table:
    seed = iter(range(100, 10**9))

    def turn(source: Source, mib: int) -> Sample:
        source.host.restore(source.name)
        source.fill(AGAIN, mib, next(seed))
        clock = watch()
        source.host.standby(source.name)
        return {_label(source, mib): clock.total()}

    pairs = [(source, mib) for mib in dirty_mib for source in sources]
    found = alternate([partial(turn, *pair) for pair in pairs], rounds=rounds)
    smallest = sources[0]
    rows = [
        Row(
            label=_label(source, mib),
            values=found[_label(source, mib)],
            against=None if source is smallest else _label(smallest, mib),
        )
        for source, mib in pairs
    ]
    return Table(title="second standby: time", setting=smallest.place.setting, rows=rows)


def _upkeep(source: Source, mib: int, rounds: int) -> Table:
    """What the sums cost of a sleep: the same with no page hashed."""
    seed = iter(range(10**6, 10**9))

    def turn(what: str, without: AbstractContextManager[object]) -> Sample:
        source.host.restore(source.name, snapshot=base)  # whose sums are right: what comes of the other side's are not
        source.fill(AGAIN, mib, next(seed))
        os.sync()
        with without:
            clock = watch()
            source.host.standby(source.name)
            return {what: clock.total()}

    base = source.host.snapshot_create(source.name, "bench-base").id

    found = alternate(
        [
            lambda: turn(UNHASHED, mock.patch.object(sums, "update", return_value="")),
            lambda: turn(HASHED, nullcontext()),
        ],
        rounds=2 * rounds,
    )
    source.host.restore(source.name, snapshot=base)
    source.host.standby(source.name)
    source.host.snapshot_remove("bench-base")
    rows = [
        Row(label=UNHASHED, values=found[UNHASHED]),
        Row(label=HASHED, values=found[HASHED], against=UNHASHED),
    ]
    target = Target(text="a sleep with sums, against one without,", limit=1.1, measured=ratio(rows, HASHED, UNHASHED))
    return Table(title=f"sums of {mib} MiB that were written", setting=source.setting, rows=rows, targets=[target])


def _bytes(source: Source, dirty_mib: Sequence[int]) -> Table:
    rows: list[Row] = []
    targets = []
    for mib in dirty_mib:
        dirty, written, allocated = _account(source, mib)
        label = f"{mib} MiB written: pages dirty"
        wrote = f"{mib} MiB written: bytes that Ramet wrote"
        rows += [
            Row(label=label, values=[dirty], unit=Unit.BYTES),
            Row(label=wrote, values=[written], unit=Unit.BYTES, against=label),
        ]
        limit, text = 1.05, f"bytes written for {mib} MiB, against dirty pages,"
        if not source.place.reflinks:
            limit, text = (
                (allocated + dirty) / dirty * 1.05,
                f"{text} where a copy of {allocated >> 20:.0f} MiB comes first,",
            )
        targets.append(Target(text=text, limit=round(limit, 3), measured=written / dirty))
    return Table(
        title="second standby: bytes",
        setting=source.setting,
        rows=rows,
        targets=targets,
        notes=[
            "Dirty pages are counted in /proc/PID/pagemap before, bytes in /proc/self/io (wchar) around it, records included.",
        ],
    )


def _account(source: Source, mib: int) -> tuple[int, int, int]:
    """Bytes of dirty pages, bytes that the standby wrote, and bytes allocated in the files that it began from."""
    host = source.host
    host.restore(source.name)
    source.fill(AGAIN, mib, seed=mib)
    info = host.pause(source.name)
    assert info.pid is not None
    assert info.mapped_memory is not None
    assert info.live_disk is not None
    memory = Path(info.mapped_memory.path)
    dirty = sum(
        region.end - region.start
        for mapping in procfs.mappings_of_file(info.pid, memory)
        for region in pagemap.read_pagemap(info.pid, mapping.start, mapping.end)
    )
    allocated = sum(path.stat().st_blocks * 512 for path in (memory, Path(info.live_disk)))
    before = _bytes_written()
    host.standby(source.name)
    assert dirty % PAGE_BYTES == 0
    return dirty, _bytes_written() - before, allocated


def _bytes_written() -> int:
    """``wchar`` of proc(5): what this process passed to write(2), copy_file_range(2) and their kin."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("wchar"))
