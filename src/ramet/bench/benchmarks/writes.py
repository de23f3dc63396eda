"""Sleep after sleep, each after the guest has written a part of its memory: what the device is given to write for it."""

from __future__ import annotations

import os
from collections.abc import Callable

from ramet.bench.benchmarks.sleep import dirty_bytes
from ramet.bench.device import device_of
from ramet.bench.results import Figure, Row, Target, Unit
from ramet.bench.samples import Sample, Samples
from ramet.bench.source import AGAIN, Source
from ramet.bench.work import Benchmark, Work
from ramet.errors import UnsupportedError

WRITTEN_MIB = 16
LIMIT = 1.2


def measure(work: Work) -> list[Figure]:
    """The guest wakes, writes a contiguous part of its memory anew, and sleeps again; what that gives the device is counted.

    Raises:
        UnsupportedError: where nobody counts what a device writes, or without reflinks.
    """
    source, count = work.sleeper(), work.plan.writes
    device = device_of(source.host.home)
    if device is None:
        raise UnsupportedError(
            "What sleeps give a device to write is counted by none here.",
            capability="device statistics",
            why="the store's file system is on no block device of its own, or that does not count (queue/iostats is 0)",
            hint="Keep RAMET_HOME on XFS, on a device or on a loop device, whose queue/iostats in sysfs is 1.",
        )
    source.place.require_reflinks("Without them each sleep writes the memory file anew.")
    found = Samples()
    for number in range(1, count + 1):
        if number == 1 or number % 5 == 0:
            work.say(f"writes: sleep {number} of {count}")
        found.add(_slept(source, device.written_bytes, seed=1000 + number))
    dirty, wrote = sum(found["dirty"]), sum(found["device"])
    rows = [
        Row(id="dirty", label="pages dirty, of one sleep", values=found["dirty"], unit=Unit.BYTES),
        Row(id="device", label="given to the device for it", values=found["device"], unit=Unit.BYTES, against="dirty"),
    ]
    return [
        Figure(
            id="writes",
            title=f"{count} sleeps, {WRITTEN_MIB} MiB written before each",
            setting=source.setting,
            rows=rows,
            targets=[
                Target(
                    text=f"bytes given to the device by {count} sleeps, against dirty pages,",
                    limit=LIMIT,
                    measured=wrote / dirty,
                )
            ],
            notes=[
                "By the device of the store, whoever else uses it: memory, disk, device state, sums, records, and the journal."
            ],
        )
    ]


def _slept(source: Source, written: Callable[[], float], seed: int) -> Sample:
    source.host.restore(source.name)
    source.fill(AGAIN, WRITTEN_MIB, seed)
    dirty = dirty_bytes(source.host.pause(source.name))
    os.sync()
    before = written()
    source.host.standby(source.name)
    os.sync()
    return {"dirty": float(dirty), "device": written() - before}


BENCHMARK = Benchmark(
    name="writes", summary="what many sleeps give the device to write, of what was dirty", measure=measure
)
