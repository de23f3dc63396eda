"""The scenario ``siblings``: forks of one source that write the same places."""

from __future__ import annotations

from ramet.verify import inside, looks
from ramet.verify.scenarios.scenario import Scenario
from ramet.verify.world import Point, World, fresh_token, sleeping_source

SIBLINGS = ("sibling-a", "sibling-b", "sibling-c")


def run_siblings(world: World) -> None:
    """Three forks of one source write over the same pages and blocks, sleep, and wake."""
    old = fresh_token()
    sleeping_source(world, old)
    with world.step("forking it three times"):
        world.fork("source", *SIBLINGS)
    world.reach(Point.SIBLINGS_FORKED)
    with world.step("restoring them all"):
        for role in SIBLINGS:
            world.host.restore(world.name(role))
    for role in SIBLINGS:
        world.inherit(role, "source")
        inside.sees(world, "siblings-see-source", role, old, at=f"{role} restored")
    with world.step("letting each write over the same pages and blocks"):
        for role in SIBLINGS:
            world.write_sentinels(role, fresh_token())
    for role in SIBLINGS:
        others = ["source", *(other for other in SIBLINGS if other != role)]
        looks.live_vmm(world, role, others, at="all have written")
        inside.sees(world, "siblings-keep-apart", role, world.tokens[role], at=f"all have written: {role}")
    looks.source_unchanged(world, "all have written")
    with world.step("putting them all to standby"):
        for role in SIBLINGS:
            world.host.standby(world.name(role))
    world.reach(Point.SIBLINGS_SLEPT)
    looks.source_unchanged(world, "all have slept")
    with world.step("restoring them again"):
        for role in SIBLINGS:
            token = world.tokens[role]
            inside.wakes_as_it_was(world, "siblings-keep-apart", role, token=token, at=f"{role} restored again")


SCENARIO = Scenario(
    name="siblings",
    summary="Three forks of one source write over the same pages and blocks, sleep, and wake.",
    claims=(
        "siblings-see-source",
        "siblings-keep-apart",
        "vmm-maps-privately",
        "vmm-cannot-write-others",
        "vmm-confined",
        "source-memory-unchanged",
        "source-disk-unchanged",
        "source-state-unchanged",
    ),
    run=run_siblings,
)
