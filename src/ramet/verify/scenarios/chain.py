"""The scenario ``chain``: forks of forks, whose ancestors go."""

from __future__ import annotations

from ramet.verify import inside, looks
from ramet.verify.scenarios.scenario import Scenario
from ramet.verify.world import Point, World, fresh_token, sleeping_source

DEPTH = 5
REMOVED_DEPTH = 3


def run_chain(world: World) -> None:
    """A fork of a fork of a fork, five deep; then the source goes, and the middle."""
    token = fresh_token()
    sleeping_source(world, token)
    previous = "source"
    for depth in range(1, DEPTH + 1):
        role = f"depth-{depth}"
        with world.step(f"forking {previous} into {role}, and letting that diverge"):
            world.fork(previous, role, start=True)
            world.inherit(role, previous)
            inside.sees(world, "chain-inherits", role, token, at=f"{role} started")
            token = fresh_token()
            world.write_sentinels(role, token)
            world.host.standby(world.name(role))
        world.remember_files(role)
        world.reach(Point.CHAIN_GREW)
        previous = role
    with world.step("deleting the source, then the middle of the chain"):
        world.host.remove(world.name("source"))
        world.host.remove(world.name(f"depth-{REMOVED_DEPTH}"))
    world.reach(Point.CHAIN_CUT)
    left = [f"depth-{depth}" for depth in range(1, DEPTH + 1) if depth != REMOVED_DEPTH]
    for role in left:
        looks.files_unchanged(world, "chain-outlives", role, at=f"source and depth-{REMOVED_DEPTH} deleted: {role}")
    with world.step("restoring what is left"):
        for role in left:
            inside.wakes_as_it_was(world, "chain-wakes", role, token=world.tokens[role], at=f"{role} restored")


SCENARIO = Scenario(
    name="chain",
    summary="Forks of forks, five deep; then the source goes, and the middle.",
    claims=("chain-inherits", "chain-outlives", "chain-wakes"),
    run=run_chain,
)
