"""Scenarios with more than one fork: siblings that write the same places, and forks of forks whose ancestors go."""

from __future__ import annotations

from ramet.verify import looks
from ramet.verify.world import Point, World, boot_source, fresh_token

SIBLINGS = ("sibling-a", "sibling-b", "sibling-c")
DEPTH = 5
REMOVED_DEPTH = 3
FILL_BYTES = 16 << 20


def run_siblings(world: World) -> None:
    """Three forks of one source write over the same pages and blocks, sleep, and wake."""
    old = fresh_token()
    _sleep_with(world, old)
    with world.step("forking it three times"):
        world.host.fork(world.name("source"), [world.name(role) for role in SIBLINGS])
    world.reach(Point.SIBLINGS_FORKED)
    with world.step("restoring them all"):
        for role in SIBLINGS:
            world.host.restore(world.name(role))
    for role in SIBLINGS:
        looks.inherit(world, role, "source")
        looks.sees(world, "siblings-see-source", role, old, at=f"{role} restored")
    with world.step("letting each write over the same pages and blocks"):
        for role in SIBLINGS:
            world.write_sentinels(role, fresh_token())
    for role in SIBLINGS:
        others = ["source", *(other for other in SIBLINGS if other != role)]
        looks.live_vmm(world, role, others, at="all have written")
        looks.sees(world, "siblings-keep-apart", role, world.scratch[f"token-{role}"], at=f"all have written: {role}")
    looks.source_unchanged(world, "all have written")
    with world.step("putting them all to standby"):
        for role in SIBLINGS:
            world.host.standby(world.name(role))
    world.reach(Point.SIBLINGS_SLEPT)
    looks.source_unchanged(world, "all have slept")
    with world.step("restoring them again"):
        for role in SIBLINGS:
            token = world.scratch[f"token-{role}"]
            looks.wakes_as_it_was(world, "siblings-keep-apart", role, token=token, at=f"{role} restored again")


def run_chain(world: World) -> None:
    """A fork of a fork of a fork, five deep; then the source goes, and the middle."""
    token = fresh_token()
    _sleep_with(world, token)
    previous = "source"
    for depth in range(1, DEPTH + 1):
        role = f"depth-{depth}"
        with world.step(f"forking {previous} into {role}, and letting that diverge"):
            world.host.fork(world.name(previous), [world.name(role)], start=True)
            looks.inherit(world, role, previous)
            looks.sees(world, "chain-inherits", role, token, at=f"{role} started")
            token = fresh_token()
            world.write_sentinels(role, token)
            world.host.standby(world.name(role))
        looks.remember_files(world, role)
        world.reach(Point.CHAIN_GREW)
        token = world.scratch[f"token-{role}"]
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
            looks.wakes_as_it_was(
                world, "chain-wakes", role, token=world.scratch[f"token-{role}"], at=f"{role} restored"
            )


def _sleep_with(world: World, token: str) -> None:
    boot_source(world, FILL_BYTES)
    with world.step("putting it to standby"):
        world.write_sentinels("source", token)
        looks.remember_guest(world, "source")
        world.host.standby(world.name("source"))
    looks.remember_files(world, "source")
