"""Small things that are done often: a command in a running guest, and starting the program itself."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ramet import process
from ramet.bench.results import Figure, Row, Target
from ramet.bench.samples import Sample, Side, alternate, percentile, watch
from ramet.bench.source import Source
from ramet.bench.work import Benchmark, Work
from ramet.hypervisors import confinement
from ramet.hypervisors.base import Hardware, LaunchSpec
from ramet.hypervisors.qemu import driver as qemu
from ramet.model import Accelerator

VERSION = "ramet --version"
COMMANDS, STARTS, CONFINED_STARTS = 15, 5, 50
"""A round of each."""
AS_IT_IS, CONFINED = "as it is", "confined as a VMM is"


def measure(work: Work) -> list[Figure]:
    """Wake the sleeping guest, run commands in it, run the program. Leaves it asleep."""
    source = work.sleeper()
    source.host.restore(source.name)
    try:
        return [
            _commands(source, COMMANDS * work.plan.rounds),
            _starts(source, STARTS * work.plan.slow_rounds),
            _confined(source, CONFINED_STARTS * work.plan.slow_rounds),
        ]
    finally:
        source.host.standby(source.name)


def _commands(source: Source, count: int) -> Figure:
    def command() -> Sample:
        clock = watch()
        source.run("true")
        return {"command": clock.total()}

    def ping() -> Sample:
        clock = watch()
        source.host.ping(source.name)
        return {"ping": clock.total()}

    found = alternate([command, ping], rounds=count)
    late = {name: percentile(values, 0.95) for name, values in found.items()}
    return Figure(
        id="commands",
        title="a running guest, from one Python process",
        setting=source.setting,
        rows=[
            Row(id="exec", label="exec true", values=found["command"]),
            Row(id="exec-p95", label="95 % within", part=True, values=[late["command"]]),
            Row(id="ping", label="ping of the agent", values=found["ping"]),
            Row(id="ping-p95", label="95 % within", part=True, values=[late["ping"]]),
        ],
    )


def _confined(source: Source, count: int) -> Figure:
    """What confinement adds to the start of a process: of one that does nothing, with the rules of a VMM."""
    info = source.host.get(source.name)
    assert info.live_disk is not None
    work_dir = Path(info.live_disk).parent
    spec = LaunchSpec(
        instance_id=info.id,
        name=source.name,
        hardware=Hardware(memory_mib=info.memory_mib, cpus=info.cpus, accelerator=Accelerator.TCG),
        memory=work_dir / "memory",
        disk=Path(info.live_disk),
        work_dir=work_dir,
        run_dir=Path(info.run_dir),
        vmm_log=Path(info.logs["vmm"]),
        console_log=Path(info.logs["console"]),
    )
    program = qemu.program()
    confined = confinement.of(spec, program, kvm=False, memory_is_written=True)

    def with_files(start: Callable[[], process.Child], limit: Callable[[process.Child], None]) -> process.Child:
        with confined.lent():
            confined.hand_over()
            return confined.start(start, limit)

    def side(label: str, starter: process.Starter, limits: Mapping[int, int]) -> Side:
        def start() -> Sample:
            clock = watch()
            child = starter(
                lambda: subprocess.Popen(["/bin/true"], stdin=subprocess.DEVNULL),
                lambda child: process.limit(child, limits, ["/bin/true"]),
            )
            seconds = clock.total()
            child.wait()
            return {label: seconds}

        return start

    sides = [side(AS_IT_IS, process.as_it_is, {}), side(CONFINED, with_files, confined.limits)]
    found = alternate(sides, rounds=count)
    added = statistics.median(found[CONFINED]) - statistics.median(found[AS_IT_IS])
    return Figure(
        id="confined",
        title="starting a process",
        setting=confinement.means(program, kvm=False),
        rows=[
            Row(id="as-it-is", label=AS_IT_IS, values=found[AS_IT_IS]),
            Row(id="confined", label=CONFINED, values=found[CONFINED], against="as-it-is"),
        ],
        targets=[Target(text="confinement, in ms added to a start,", limit=5, measured=1000 * added)],
    )


def _starts(source: Source, count: int) -> Figure:
    program = str(Path(sys.executable).with_name("ramet"))
    wanted: dict[str, Sequence[str]] = {
        "python -c pass": [sys.executable, "-c", "pass"],
        VERSION: [program, "--version"],
        "ramet ls": [program, "ls"],
        "ramet exec NAME -- true": [program, "exec", source.name, "--", "true"],
    }
    environment = {**os.environ, "RAMET_HOME": str(source.host.home)}

    def side(label: str) -> Side:
        def start() -> Sample:
            clock = watch()
            subprocess.run(
                wanted[label], env=environment, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
            return {label: clock.total()}

        return start

    found = alternate([side(label) for label in wanted], rounds=count)
    rows = [Row(id=label, label=label, values=found[label]) for label in wanted]
    median = sorted(found[VERSION])[count // 2]
    return Figure(
        id="starts",
        title="processes, from start to end",
        setting="one instance in the store",
        rows=rows,
        targets=[Target(text=f"{VERSION}, in seconds,", limit=0.1, measured=median)],
    )


BENCHMARK = Benchmark(name="startup", summary="commands in a running guest, and starting the program", measure=measure)
