"""Run benchmarks in a store of their own, and make the report."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ramet import __version__, config, version
from ramet.bench import peers
from ramet.bench.benchmarks import catalogue
from ramet.bench.place import IMAGE, Place, place
from ramet.bench.results import HostFacts, Outcome, Report
from ramet.bench.samples import watch
from ramet.bench.source import MEMORY_MIN_MIB, filled_mib
from ramet.bench.work import FULL, QUICK, Benchmark, Plan, Work
from ramet.errors import ConfigError, NoSpaceError, UnsupportedError
from ramet.hypervisors.firecracker import driver as firecracker
from ramet.hypervisors.qemu import driver as qemu
from ramet.instances.choice import Choice, choose
from ramet.linux.mounts import file_system_of
from ramet.model import Hypervisor, MemoryPolicy, Method

Say = Callable[[str], None]


def run(
    home: Path,
    *,
    hypervisor: Hypervisor | None = None,
    memory_mib: int = 256,
    memory_policy: MemoryPolicy = MemoryPolicy.CLONE,
    only: Sequence[str] = (),
    full: bool = False,
    against: bool = False,
    on_progress: Say | None = None,
) -> Report:
    """Run the benchmarks (all by default) in a store below ``home``, which is gone afterwards, whatever happens.

    ``full`` measures more of each; ``against`` measures the peers that are here in the same run. A benchmark that this host lacks
    something for is skipped, and the report says why.

    Raises:
        ConfigError: for unknown names, and guests that are too small to be measured or too large for this host.
        UnsupportedError: if no VMM runs here.
        RametError: if a benchmark fails.
    """
    return measure(
        home,
        catalogue.named(only),
        hypervisor=hypervisor,
        memory_mib=memory_mib,
        memory_policy=memory_policy,
        plan=FULL if full else QUICK,
        against=against,
        say=on_progress or (lambda text: None),
    )


def measure(
    home: Path,
    chosen: Sequence[Benchmark],
    *,
    hypervisor: Hypervisor | None,
    memory_mib: int,
    memory_policy: MemoryPolicy,
    plan: Plan,
    against: bool,
    say: Say,
) -> Report:
    """Run these benchmarks, as ``run`` does.

    Raises:
        RametError: as ``run``.
    """
    clock, load = watch(), os.getloadavg()[0]
    check_memory(memory_mib)
    choice = choose(hypervisor, None)
    with place(home, say) as here:
        found = peers.look(here, choice.hypervisor, wanted=against)
        work = Work(
            place=here,
            plan=plan,
            hypervisor=choice.hypervisor,
            memory_mib=memory_mib,
            memory_policy=memory_policy,
            peers=frozenset(peer.name for peer in found if peer.why_absent is None),
            say=say,
        )
        with work.stack:
            outcomes = [_outcome(benchmark, work) for benchmark in chosen]
        host = _describe(here, choice, memory_mib, memory_policy, load=load)
    return Report(host=host, plan=plan.name, peers=found, outcomes=outcomes, seconds=clock.total())


def check_memory(memory_mib: int) -> None:
    """Refuse guests that cannot be measured here.

    Raises:
        ConfigError: if they have too little memory, or more than the host.
    """
    if memory_mib < MEMORY_MIN_MIB:
        raise ConfigError(
            f"Guests of {memory_mib} MiB have nothing to measure: most of their memory is in use when they have booted.",
            hint=f"Use {MEMORY_MIN_MIB}M or more.",
        )
    config.check_memory(memory_mib, host_mib=config.host_memory_mib())


def _outcome(benchmark: Benchmark, work: Work) -> Outcome:
    clock = watch()
    try:
        figures = benchmark.measure(work)
    except (UnsupportedError, NoSpaceError) as err:
        why = err.message.splitlines()[0]
        return Outcome(name=benchmark.name, summary=benchmark.summary, seconds=clock.total(), skipped=why)
    return Outcome(name=benchmark.name, summary=benchmark.summary, seconds=clock.total(), figures=figures)


def _describe(here: Place, choice: Choice, memory_mib: int, memory_policy: MemoryPolicy, *, load: float) -> HostFacts:
    by_qemu = choice.hypervisor is Hypervisor.QEMU
    return HostFacts(
        ramet=version.full(__version__),
        cpu=_cpu_model(),
        cpus=len(os.sched_getaffinity(0)),
        memory_mib=config.host_memory_mib(),
        machine=platform.machine(),
        load=load,
        kernel=platform.release(),
        python=platform.python_version(),
        hypervisor=choice.hypervisor,
        vmm=f"QEMU {qemu.version(qemu.program())}" if by_qemu else _firecracker_version(),
        accelerator=choice.accelerator,
        file_system=file_system_of(here.directory),
        copy_method=Method.REFLINK if here.reflinks else Method.COPY,
        memory_policy=memory_policy,
        guest_memory_mib=memory_mib,
        guest_filled_mib=filled_mib(memory_mib),
        image=f"{IMAGE} {here.image()[1].digest[:12]}",
        date=time.strftime("%Y-%m-%d %H:%M:%S %z"),
    )


def _firecracker_version() -> str:
    return f"Firecracker {'.'.join(map(str, firecracker.version(firecracker.program())))}"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
