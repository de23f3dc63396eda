"""The scenario ``base``: one fork's whole life beside a sleeping source."""

from __future__ import annotations

from ramet.model import MIB, MemoryPolicy
from ramet.verify import inside, looks
from ramet.verify.scenarios.scenario import Scenario
from ramet.verify.world import DISK_BYTES, Point, World, fill_size, fresh_token

REFILL_BYTES = 8 * MIB
"""What the fork writes anew."""


def run_base(world: World) -> None:
    """One fork's whole life beside a sleeping source."""
    fork = world.name("fork")
    old, new = fresh_token(), fresh_token()
    _sleep_with_full_memory(world, old)
    looks.source_dirtied(world)
    with world.step("forking"):
        world.fork("source", "fork")
    world.inherit("fork", "source")
    world.reach(Point.FORKED)
    looks.own_inodes(world, "fork", "source", at="forked", shares=world.memory_policy is MemoryPolicy.SHARE)
    looks.modes(world, ["source", "fork"])
    looks.source_unchanged(world, "fork")
    world.reach(Point.FORK_RESTORING)
    with world.step("restoring the fork"), looks.watched(world, "fork", ["source"], at="while the fork was restored"):
        inside.restores(world, "fork")
    world.reach(Point.FORK_RESTORED)
    looks.live_vmm(world, "fork", ["source"], at="fork restored")
    _fork_is_right(world, old)
    looks.source_unchanged(world, "fork restored")
    with world.step("letting the fork diverge"):
        world.write_sentinels("fork", new)
        world.fill("fork", seed=2, size_bytes=min(REFILL_BYTES, world.fill_bytes))
        world.note_memory_sum("fork")
    looks.live_vmm(world, "fork", ["source"], at="fork diverged")
    looks.source_unchanged(world, "fork diverged")
    with world.step("taking the fork's diff snapshot"):
        world.host.standby(fork)
    world.reach(Point.FORK_SLEPT)
    looks.own_inodes(world, "fork", "source", at="fork's diff snapshot")
    looks.source_unchanged(world, "fork's diff snapshot")
    looks.disk_usage(world, "fork", "source")
    _fork_wakes_from_its_diff(world, new)
    _delete_fork(world)
    world.reach(Point.SOURCE_RESTORING)
    with world.step("restoring the source"):
        inside.wakes_as_it_was(world, "source-restores", "source", token=old, at="source restored")
    inside.own_randomness(world, "source", "fork")
    looks.live_vmm(world, "source", [], at="source restored")
    looks.source_unchanged(world, "source restored")


def _sleep_with_full_memory(world: World, token: str) -> None:
    source = world.name("source")
    with world.step("booting the source"):
        world.host.create(source, memory_mib=world.memory_mib, disk_bytes=DISK_BYTES, hypervisor=world.hypervisor)
    world.reach(Point.BOOTED)
    world.fill_bytes = fill_size(world, "source")
    world.reach(Point.FILLING)
    with world.step(f"filling {world.fill_bytes // MIB} MiB of its {world.memory_mib} MiB with incompressible data"):
        world.fill("source", seed=1, size_bytes=world.fill_bytes)
        world.write_sentinels("source", token)
        world.guest("source", "date -s @$(($(date +%s) - 3600))")  # only a clock that is given to the fork can be right
    world.remember_guest("source")
    with world.step("putting it to standby"):
        world.host.standby(source)
    world.remember_files("source")


def _fork_is_right(world: World, token: str) -> None:
    with world.step("asking the fork's guest"):
        inside.same_boot(world, "fork")
        inside.sees(world, "fork-sees-source", "fork", token, at="fork restored")
        inside.own_identity(world, "fork", "source")
        inside.wall_clock(world, "fork")
        world.randomness["fork"] = world.draw_randomness("fork")


def _fork_wakes_from_its_diff(world: World, token: str) -> None:
    with world.step("restoring the fork from its own diff"):
        inside.wakes_as_it_was(world, "fork-diff-complete", "fork", token=token, at="diff restored")
    looks.live_vmm(world, "fork", ["source"], at="diff restored")


def _delete_fork(world: World) -> None:
    traces = looks.traces(world, "fork")
    with world.step("deleting the running fork"):
        world.host.remove(world.name("fork"), force=True)
    world.reach(Point.FORK_DELETED)
    looks.nothing_left(world, "fork", traces)
    looks.source_unchanged(world, "fork deleted", drop_cache=True)


SCENARIO = Scenario(
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
        "vmm-confined",
        "source-memory-unchanged",
        "source-disk-unchanged",
        "source-state-unchanged",
        "fork-diff-complete",
        "fork-disk-usage",
        "nothing-left",
        "source-restores",
    ),
    run=run_base,
)
