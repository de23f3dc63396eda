"""The scenarios: what is done to real guests, and where it is looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ramet.verify import crowds, families, looks, moments, sleeps
from ramet.verify.world import REFILL_BYTES, Point, World, boot_source, fill_size, fresh_token

REVERSE_FILL_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A scenario before it is run."""

    name: str
    summary: str
    claims: tuple[str, ...]
    run: Callable[[World], None]


def run_base(world: World) -> None:
    """One fork's whole life beside a sleeping source."""
    source, fork = world.name("source"), world.name("fork")
    old, new = fresh_token(), fresh_token()
    _sleep_with_full_memory(world, old)
    looks.source_dirtied(world)
    with world.step("forking"):
        world.host.fork(source, [fork])
    looks.inherit(world, "fork", "source")
    world.reach(Point.FORKED)
    looks.own_inodes(world, "fork", "source")
    looks.modes(world, ["source", "fork"])
    looks.source_unchanged(world, "fork")
    world.reach(Point.FORK_RESTORING)
    with world.step("restoring the fork"), looks.watched(world, "fork", ["source"], at="while the fork was restored"):
        looks.restores(world, "fork")
    world.reach(Point.FORK_RESTORED)
    looks.live_vmm(world, "fork", ["source"], at="fork restored")
    _fork_is_right(world, old)
    looks.source_unchanged(world, "fork restored")
    with world.step("letting the fork diverge"):
        world.write_sentinels("fork", new)
        world.fill("fork", seed=2, size_bytes=min(REFILL_BYTES, world.fill_bytes))
        world.note_memory_sum("fork")
    world.reach(Point.FORK_DIVERGED)
    looks.live_vmm(world, "fork", ["source"], at="fork diverged")
    looks.source_unchanged(world, "fork diverged")
    with world.step("taking the fork's diff snapshot"):
        world.host.standby(fork)
    world.reach(Point.FORK_SLEPT)
    looks.source_unchanged(world, "fork's diff snapshot")
    looks.disk_usage(world, "fork", "source")
    _fork_wakes_from_its_diff(world, new)
    _delete_fork(world)
    world.reach(Point.SOURCE_RESTORING)
    with world.step("restoring the source"):
        looks.wakes_as_it_was(world, "source-restores", "source", token=old, at="source restored")
    looks.own_randomness(world, "source", "fork")
    looks.live_vmm(world, "source", [], at="source restored")
    looks.source_unchanged(world, "source restored")


def _sleep_with_full_memory(world: World, token: str) -> None:
    source = world.name("source")
    with world.step("booting the source"):
        world.host.create(source, memory_mib=world.memory_mib, disk_bytes=looks.DISK_BYTES, hypervisor=world.hypervisor)
    world.reach(Point.BOOTED)
    world.fill_bytes = fill_size(world, "source")
    world.reach(Point.FILLING)
    with world.step(f"filling {world.fill_bytes >> 20} MiB of its {world.memory_mib} MiB with incompressible data"):
        world.fill("source", seed=1, size_bytes=world.fill_bytes)
        world.write_sentinels("source", token)
        world.guest("source", "date -s @$(($(date +%s) - 3600))")  # only a clock that is given to the fork can be right
    looks.remember_guest(world, "source")
    with world.step("putting it to standby"):
        world.host.standby(source)
    looks.remember_files(world, "source")


def _fork_is_right(world: World, token: str) -> None:
    with world.step("asking the fork's guest"):
        looks.same_boot(world, "fork")
        looks.sees(world, "fork-sees-source", "fork", token, at="fork restored")
        looks.own_identity(world, "fork", "source")
        looks.wall_clock(world, "fork")
        world.randomness["fork"] = world.draw_randomness("fork")


def _fork_wakes_from_its_diff(world: World, token: str) -> None:
    with world.step("restoring the fork from its own diff"):
        looks.wakes_as_it_was(world, "fork-diff-complete", "fork", token=token, at="diff restored")
    looks.live_vmm(world, "fork", ["source"], at="diff restored")


def _delete_fork(world: World) -> None:
    traces = looks.traces(world, "fork")
    with world.step("deleting the running fork"):
        world.host.remove(world.name("fork"), force=True)
    world.reach(Point.FORK_DELETED)
    looks.nothing_left(world, "fork", traces)
    looks.source_unchanged(world, "fork deleted", drop_cache=True)


def run_reverse(world: World) -> None:
    """The source wakes, diverges and sleeps again while one fork sleeps and one runs."""
    source = world.name("source")
    old, new = fresh_token(), fresh_token()
    boot_source(world, REVERSE_FILL_BYTES)
    with world.step("putting it to standby"):
        world.write_sentinels("source", old)
        looks.remember_guest(world, "source")
        world.host.standby(source)
    with world.step("forking it twice, and restoring one fork"):
        world.host.fork(source, [world.name("sleeper"), world.name("runner")])
        looks.remember_files(world, "sleeper")
        looks.inherit(world, "sleeper", "source")
        looks.inherit(world, "runner", "source")
        world.host.restore(world.name("runner"))
    looks.fork_unchanged(world, "forked")
    with world.step("restoring the source and letting it diverge"):
        world.host.restore(source)
        looks.live_vmm(world, "runner", ["source", "sleeper"], at="source restored")
        looks.live_vmm(world, "source", ["runner", "sleeper"], at="source restored")
        world.write_sentinels("source", new)
        world.fill("source", seed=2, size_bytes=world.fill_bytes)
        world.note_memory_sum("source")
    world.reach(Point.SOURCE_DIVERGED)
    looks.fork_unchanged(world, "source diverged")
    with world.step("putting the source to standby again"):
        world.host.standby(source)
    world.reach(Point.SOURCE_SLEPT)
    looks.fork_unchanged(world, "source slept", drop_cache=True)
    _forks_are_as_they_were(world, old, new)


def _forks_are_as_they_were(world: World, old: str, new: str) -> None:
    with world.step("asking the running fork"):
        looks.still_reads(world, "running-fork-unnoticed", "runner", token=old, at="source slept")
    world.reach(Point.SLEEPER_RESTORING)
    with world.step("restoring the fork that slept"):
        looks.wakes_as_it_was(world, "sleeping-fork-wakes", "sleeper", token=old, at="sleeping fork restored")
    world.reach(Point.SOURCE_WAKING_AGAIN)
    with world.step("restoring the source from its second snapshot"):
        looks.wakes_as_it_was(world, "source-diff-complete", "source", token=new, at="source restored again")
    looks.live_vmm(world, "sleeper", ["source", "runner"], at="all running")


SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            name="base",
            summary="One fork's whole life beside a sleeping source: restore, diverge, diff snapshot, delete.",
            claims=(
                "source-dirtied",
                "fork-own-inodes",
                "snapshot-modes",
                "fork-wakes",
                "fork-same-boot",
                "fork-sees-source",
                "own-identity",
                "wall-clock",
                "own-randomness",
                "vmm-maps-privately",
                "vmm-cannot-write-others",
                "source-memory-unchanged",
                "source-disk-unchanged",
                "source-state-unchanged",
                "fork-diff-complete",
                "fork-disk-usage",
                "nothing-left",
                "source-restores",
            ),
            run=run_base,
        ),
        Scenario(
            name="reverse",
            summary="The source wakes, diverges and sleeps again while one fork sleeps and another runs.",
            claims=(
                "vmm-maps-privately",
                "vmm-cannot-write-others",
                "sleeping-fork-unchanged",
                "running-fork-unnoticed",
                "sleeping-fork-wakes",
                "source-diff-complete",
            ),
            run=run_reverse,
        ),
        Scenario(
            name="siblings",
            summary="Three forks of one source write over the same pages and blocks, sleep, and wake.",
            claims=(
                "siblings-see-source",
                "siblings-keep-apart",
                "vmm-maps-privately",
                "vmm-cannot-write-others",
                "source-memory-unchanged",
                "source-disk-unchanged",
                "source-state-unchanged",
            ),
            run=families.run_siblings,
        ),
        Scenario(
            name="chain",
            summary="Forks of forks, five deep; then the source goes, and the middle.",
            claims=("chain-inherits", "chain-outlives", "chain-wakes"),
            run=families.run_chain,
        ),
        Scenario(
            name="live",
            summary="A source that writes all the time is forked while it runs.",
            claims=(
                "live-pair-agrees",
                "live-disk-clean",
                "source-runs-on",
                "vmm-maps-privately",
                "vmm-cannot-write-others",
            ),
            run=moments.run_live,
        ),
        Scenario(
            name="rewind",
            summary="One snapshot of a running source is gone back to again and again.",
            claims=("rewind-is-exact", "rewind-changes-nothing"),
            run=moments.run_rewind,
        ),
        Scenario(
            name="sleeps",
            summary="Three sleeps in a row: pages are zeroed before the second, nothing is written before the third.",
            claims=("sleeps-add-up", "zeroed-pages-stay-zero", "sleeping-fork-unchanged", "sleeping-fork-wakes"),
            run=sleeps.run_sleeps,
        ),
        Scenario(
            name="swapped",
            summary="A VMM whose pages were swapped out is put to standby.",
            claims=("swapped-pages-are-kept",),
            run=sleeps.run_swapped,
        ),
        Scenario(
            name="together",
            summary="A source that writes all the time is forked while another command puts it to standby.",
            claims=("together-pair-agrees", "together-source-wakes", "vmm-maps-privately", "vmm-cannot-write-others"),
            run=sleeps.run_together,
        ),
        Scenario(
            name="flight",
            summary="A source is forked and put to standby while requests and writes are under way.",
            claims=("answers-after-flight",),
            run=crowds.run_flight,
        ),
        Scenario(
            name="draws",
            summary="Twenty forks of one snapshot draw randomness as soon as they wake.",
            claims=("forks-draw-apart",),
            run=crowds.run_draws,
        ),
    )
}


def chosen(names: Sequence[str]) -> list[Scenario]:
    """The scenarios with these names, or all; in their own order."""
    return [scenario for name, scenario in SCENARIOS.items() if not names or name in names]
