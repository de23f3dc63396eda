"""The scenario ``reverse``: the source lives on while one fork sleeps and one runs."""

from __future__ import annotations

from ramet.verify import inside, looks
from ramet.verify.scenarios.scenario import Scenario
from ramet.verify.world import Point, World, fresh_token, sleeping_source


def run_reverse(world: World) -> None:
    """The source wakes, diverges and sleeps again while one fork sleeps and one runs."""
    source = world.name("source")
    old, new = fresh_token(), fresh_token()
    sleeping_source(world, old)
    with world.step("forking it twice, and restoring one fork"):
        world.fork("source", "sleeper", "runner")
        world.remember_files("sleeper")
        world.inherit("sleeper", "source")
        world.inherit("runner", "source")
        world.reach(Point.RUNNER_RESTORING)
        world.host.restore(world.name("runner"))
    looks.sleeper_unchanged(world, "forked")
    with world.step("restoring the source and letting it diverge"):
        world.host.restore(source)
        looks.live_vmm(world, "runner", ["source", "sleeper"], at="source restored")
        looks.live_vmm(world, "source", ["runner", "sleeper"], at="source restored")
        world.write_sentinels("source", new)
        world.fill("source", seed=2, size_bytes=world.fill_bytes)
        world.note_memory_sum("source")
    looks.sleeper_unchanged(world, "source diverged")
    with world.step("putting the source to standby again"):
        world.host.standby(source)
    world.reach(Point.SOURCE_SLEPT)
    looks.sleeper_unchanged(world, "source slept", drop_cache=True)
    _forks_are_as_they_were(world, old, new)


def _forks_are_as_they_were(world: World, old: str, new: str) -> None:
    with world.step("asking the running fork"):
        inside.still_reads(world, "running-fork-unnoticed", "runner", token=old, at="source slept")
    world.reach(Point.SLEEPER_RESTORING)
    with world.step("restoring the fork that slept"):
        inside.wakes_as_it_was(world, "sleeping-fork-wakes", "sleeper", token=old, at="sleeping fork restored")
    world.reach(Point.SOURCE_WAKING_AGAIN)
    with world.step("restoring the source from its second snapshot"):
        inside.wakes_as_it_was(world, "source-diff-complete", "source", token=new, at="source restored again")
    looks.live_vmm(world, "sleeper", ["source", "runner"], at="all running")


SCENARIO = Scenario(
    name="reverse",
    summary="The source wakes, diverges and sleeps again while one fork sleeps and another runs.",
    claims=(
        "vmm-maps-privately",
        "vmm-cannot-write-others",
        "vmm-confined",
        "sleeping-fork-unchanged",
        "running-fork-unnoticed",
        "sleeping-fork-wakes",
        "source-diff-complete",
    ),
    run=run_reverse,
)
