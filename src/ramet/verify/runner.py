"""Run scenarios, whole or sabotaged, and make the report."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from ramet import __version__, version
from ramet.errors import ConfigError, RametError
from ramet.instances.host import Host
from ramet.linux.mounts import file_system_of
from ramet.model import Hypervisor, MemoryPolicy
from ramet.signals import signals_held
from ramet.verify import abandoned, needs
from ramet.verify import sabotage as sabotages
from ramet.verify.checks import Ledger
from ramet.verify.reports.results import Report, ScenarioRun
from ramet.verify.sabotage import SABOTAGES, Sabotage
from ramet.verify.scenarios import catalogue
from ramet.verify.scenarios.catalogue import SCENARIOS
from ramet.verify.scenarios.scenario import Scenario
from ramet.verify.strikes import files, vmms
from ramet.verify.world import CutShortError, Point, World

Say = Callable[[str], None]
IMAGE = "micro"
MEMORY_MIN_MIB = 224
"""Less would leave a guest too little that it can fill: a fork that copies everything would not stand out."""
VMM_ROWS = {Hypervisor.QEMU: "QEMU", Hypervisor.FIRECRACKER: "Firecracker"}
"""Of ``doctor``."""


def scenario_names() -> dict[str, str]:
    """Each scenario and what it does."""
    return {name: scenario.summary for name, scenario in SCENARIOS.items()}


def sabotage_names() -> dict[str, str]:
    """Each sabotage and what it does."""
    return {name: one.summary for name, one in SABOTAGES.items()}


def run(
    home: Path,
    *,
    hypervisor: str = "qemu",
    memory_mib: int = 256,
    memory_policy: MemoryPolicy = MemoryPolicy.CLONE,
    scenarios: Sequence[str] = (),
    sabotage: str | None = None,
    on_progress: Say | None = None,
    keep: bool = False,
    stop_when_caught: bool = False,
) -> Report:
    """Run the scenarios (all by default), or the one that a sabotage strikes, with guests of its own in the store ``home``.

    What it made is removed at the end, whatever happens, unless ``keep``. ``stop_when_caught`` ends a sabotaged run early: which
    other checks would have failed is not known then.

    Raises:
        ConfigError: for unknown names, too little memory, or a sabotage of a scenario that was not chosen.
        RametError: if it cannot begin: no VMM, no image.
    """
    say = on_progress or (lambda text: None)
    began = time.monotonic()
    broken = _sabotage(sabotage, scenarios)
    chosen = [SCENARIOS[broken.scenario]] if broken else catalogue.named(scenarios)
    host = prepare(home, memory_mib, say)
    why_not = None
    if broken:
        why_not = broken.why_not(Hypervisor(hypervisor), needs.lacks(host, Hypervisor(hypervisor)), memory_policy)
    if why_not is not None:
        raise ConfigError(f"The sabotage {sabotage!r} cannot be committed here: {why_not}.")
    strike = sabotages.strike_of(broken, stop_when_caught=stop_when_caught)
    runs: list[ScenarioRun] = []
    for scenario in chosen:
        runs.append(
            _run_one(
                host,
                scenario,
                strike,
                Hypervisor(hypervisor),
                memory_mib,
                memory_policy,
                say,
                keep=keep,
                is_first=not runs,
            )
        )
    about = describe(host, Hypervisor(hypervisor), memory_mib, memory_policy)
    if len(chosen) < len(SCENARIOS):
        about["scenarios"] = f"{', '.join(one.name for one in chosen)}: {len(chosen)} of {len(SCENARIOS)}"
    return Report(
        host=about,
        scenarios=tuple(runs),
        sabotage=sabotage,
        seconds=time.monotonic() - began,
        must_fail=broken.caught_by if broken else (),
    )


def prepare(home: Path, memory_mib: int, say: Say) -> Host:
    """The Host, with its image built if it is not there.

    Raises:
        ConfigError: for guests that have too little memory.
    """
    if memory_mib < MEMORY_MIN_MIB:
        raise ConfigError(
            f"Guests of {memory_mib} MiB cannot prove anything: most of their memory is in use when they have booted.",
            hint=f"Use {MEMORY_MIN_MIB}M or more.",
        )
    host = Host(home)
    abandoned.remove(host, say)
    if not any(IMAGE in tags for _, tags in host.image_list()):
        say(f"building the guest image {IMAGE}")
        host.image_build(IMAGE)
    return host


def _sabotage(name: str | None, chosen: Sequence[str]) -> Sabotage | None:
    if name is None:
        return None
    broken = sabotages.named(name)
    if chosen and broken.scenario not in chosen:
        raise ConfigError(
            f"The sabotage {name!r} strikes in the scenario {broken.scenario!r}, not in {', '.join(chosen)}.",
            hint=f"Leave out --scenario, or name {broken.scenario}.",
        )
    return broken


def _run_one(
    host: Host,
    scenario: Scenario,
    strike: Callable[[World, Point], None],
    hypervisor: Hypervisor,
    memory_mib: int,
    memory_policy: MemoryPolicy,
    say: Say,
    *,
    keep: bool,
    is_first: bool,
) -> ScenarioRun:
    ledger = Ledger(scenario.name, scenario.claims, memory_policy=memory_policy)
    world = World(
        host=host,
        memory_mib=memory_mib,
        hypervisor=hypervisor,
        ledger=ledger,
        say=say,
        strike=strike,
        memory_policy=memory_policy,
        why_no_vmm_users=host.why_no_vmm_users(hypervisor),
    )
    left: list[str] = []
    if keep:
        world.tag = f"{abandoned.KEPT}{world.tag}"
    at_work = ExitStack()
    try:
        at_work.enter_context(abandoned.at_work(host, world.tag))
        scenario.run(world)
    except RametError as err:
        if is_first and all(step.unseen is not None for step in world.steps) and not isinstance(err, CutShortError):
            raise  # nothing has worked yet: that is for the caller to hear
        ledger.cut_short(err.message.splitlines()[0])
    except OSError as err:
        ledger.cut_short(f"evidence could not be taken: {err}")
    except (ValueError, IndexError) as err:
        ledger.cut_short(f"a guest's answer made no sense: {err}")
    finally:
        with signals_held():  # a second Ctrl-C waits until nothing is left
            vmms.unwrap_vmm(world)
            vmms.seal_again(world)
            vmms.keep_from_merging(world)
            files.clear_what_was_left(world)
            if not keep:
                say(f"{scenario.name}: removing what was made")
                left = world.remove_all()
            elif world.names:
                say(f"{scenario.name}: kept; to remove it: ramet rm --force {' '.join(world.names.values())}")
            at_work.close()
    return ScenarioRun(
        name=scenario.name,
        summary=scenario.summary,
        results=ledger.results(),
        steps=tuple(world.steps),
        cut_short=ledger.why_cut_short,
        left_behind=tuple(left),
    )


def describe(host: Host, hypervisor: Hypervisor, memory_mib: int, memory_policy: MemoryPolicy) -> dict[str, str]:
    """What a report says of the host that it was made on."""
    capabilities = {one.name: one for one in host.doctor()}
    vmm = capabilities[VMM_ROWS[hypervisor]].why
    accelerator = "kvm" if capabilities["KVM"].available else "tcg"
    no_reflinks = needs.why_no_reflinks(host.home)
    return {
        "ramet": version.full(__version__),
        "kernel": f"{os.uname().release} ({platform.machine()}, {os.cpu_count()} CPUs)",
        "vmm": f"{vmm}, {accelerator}",
        "guest": f"{memory_mib} MiB, image {IMAGE}",
        "forks": f"memory policy {memory_policy.value}",
        "store": f"{host.home} on {file_system_of(host.home)}, {'sparse copies' if no_reflinks else 'reflinks'}",
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }
