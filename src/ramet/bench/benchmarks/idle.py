"""What a fork costs that has run one command and idles: its guest's own memory, its VMM's, its disk, and CPU time."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from ramet.bench.benchmarks.share import in_ram
from ramet.bench.results import Figure, Role, Row, Target, Unit
from ramet.bench.samples import Sample, Samples, summarize
from ramet.bench.source import Source
from ramet.bench.work import Benchmark, Work
from ramet.errors import host_errors
from ramet.linux import extents, procfs
from ramet.model import MIB, InstanceInfo

FORKS = 3
SETTLED_S, WATCHED_S = 2.0, 8.0
OWN_MIB_MAX = 2.0
CANNOT_TELL = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL)
"""FIEMAP of a file system that has none, such as tmpfs."""


def measure(work: Work) -> list[Figure]:
    """Fork the sleeping guest, run one command in each fork, and look at what it has that no other has."""
    source = work.sleeper()
    work.say("idle: forks that have run one command")
    found = Samples()
    names = [f"{source.name}-idle{number}" for number in range(FORKS)]
    with ExitStack() as stack:
        for name in names:
            source.host.fork(source.name, [name], start=True, memory_policy=source.memory_policy)
            stack.callback(source.host.remove, name, force=True)
            source.host.exec(name, ["true"])
        os.sync()
        infos = [source.host.get(name) for name in names]
        used = _cpu_per_second(infos)
        for info in infos:
            found.add({**_own(source, info), "cpu": used[info.id]})
    rows = [
        Row(id="guest-memory", label="the guest's own memory", values=found["guest"], unit=Unit.BYTES),
        Row(id="vmm-memory", label="the VMM's own memory, apart from that", values=found["vmm"], unit=Unit.BYTES),
        Row(id="cached", label="its memory file in RAM (page cache)", values=found["cached"], unit=Unit.BYTES),
        Row(id="pss", label="its share of all that it maps (Pss)", values=found["pss"], unit=Unit.BYTES),
        Row(id="disk", label="its own disk: blocks of its memory file and disk", values=found["disk"], unit=Unit.BYTES),
        Row(id="cpu", label="CPU time that it takes in a second", values=found["cpu"]),
        Row(
            id="source-disk",
            label="what its source's files take, as a copy would",
            values=[float(_blocks([source.snapshot_dir()]))],
            unit=Unit.BYTES,
            role=Role.FLOOR,
        ),
    ]
    measured = summarize(found["guest"]).median / MIB
    return [
        Figure(
            id="idle",
            title="an idle fork, after its first command",
            setting=f"{source.setting}, {source.memory_policy}",
            rows=rows,
            targets=[Target(text="own memory of an idle fork's guest, in MiB,", limit=OWN_MIB_MAX, measured=measured)],
            notes=[
                "Own memory: private anonymous pages, in RAM or in swap. Own disk: blocks that no other file shares."
            ],
        )
    ]


def own_guest_memory(info: InstanceInfo) -> int:
    """Private anonymous pages of the mappings of an instance's memory file, in bytes.

    Raises:
        HostError: if its VMM cannot be looked at.
    """
    assert info.pid is not None
    assert info.mapped_memory is not None
    found, inside = 0, False
    with host_errors(f"look at the memory of {info.name}"):
        mappings = {mapping.start for mapping in procfs.mappings_of_file(info.pid, Path(info.mapped_memory.path))}
        lines = Path(f"/proc/{info.pid}/smaps").read_text().splitlines()
    for line in lines:
        first, *rest = line.split()
        if "-" in first and not first.endswith(":"):
            inside = int(first.partition("-")[0], 16) in mappings
        elif inside and first in ("Anonymous:", "Swap:"):
            found += int(rest[0]) * 1024
    return found


def _own(source: Source, info: InstanceInfo) -> Sample:
    assert info.pid is not None
    assert info.live_disk is not None
    guest = own_guest_memory(info)
    with host_errors(f"look at the memory of {info.name}"):
        used = procfs.smaps_rollup(info.pid)
    directories = [Path(info.live_disk).parent]
    if info.snapshot is not None and Path(info.snapshot.dir) != source.snapshot_dir():
        directories.append(Path(info.snapshot.dir))
    return {
        "guest": float(guest),
        "vmm": float(procfs.own_memory_bytes(used) - guest),
        "cached": in_ram([info]),
        "pss": float(used["Pss"]),
        "disk": float(_exclusive(directories)),
    }


def _cpu_per_second(infos: Sequence[InstanceInfo]) -> dict[str, float]:
    """Seconds of CPU that the VMM of each takes in a second, by id, once what its last command has left is done."""
    time.sleep(SETTLED_S)
    before = {info.id: _cpu_s(info) for info in infos}
    time.sleep(WATCHED_S)
    return {info.id: (_cpu_s(info) - before[info.id]) / WATCHED_S for info in infos}


def _cpu_s(info: InstanceInfo) -> float:
    assert info.pid is not None
    with host_errors(f"look at the CPU time of {info.name}"):
        return procfs.cpu_ns(info.pid) / 1e9


def _files(directories: Sequence[Path]) -> list[Path]:
    return [path for directory in directories for path in directory.iterdir() if path.is_file()]


def _blocks(directories: Sequence[Path]) -> int:
    return sum(path.stat().st_blocks * 512 for path in _files(directories))


def _exclusive(directories: Sequence[Path]) -> int:
    """Bytes that no other file shares; where the file system cannot tell, all of them."""
    found = 0
    for path in _files(directories):
        with host_errors(f"look at {path}"), path.open("rb") as stream:
            try:
                found += extents.exclusive_bytes(extents.fiemap(stream.fileno()))
            except OSError as err:
                if err.errno not in CANNOT_TELL:
                    raise
                found += os.fstat(stream.fileno()).st_blocks * 512
    return found


BENCHMARK = Benchmark(name="idle", summary="memory, disk and CPU time that an idle fork takes", measure=measure)
