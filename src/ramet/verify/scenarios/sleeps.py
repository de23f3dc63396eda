"""The scenario ``sleeps``: snapshots of snapshots, with pages that were zeroed, and with nothing written."""

from __future__ import annotations

from ramet.model import MIB, PAGE_BYTES
from ramet.verify import inside, looks
from ramet.verify.scenarios.scenario import Scenario
from ramet.verify.world import Point, World, fresh_token, sleeping_source

ZEROED_BYTES = 8 * MIB


def run_sleeps(world: World) -> None:
    """A source sleeps three times in a row: it zeroes pages before the second sleep, and writes nothing before the third."""
    source, old, new = world.name("source"), fresh_token(), fresh_token()
    sleeping_source(world, old)
    with world.step("forking it"):
        world.fork("source", "sleeper")
        world.remember_files("sleeper")
        world.inherit("sleeper", "source")
    with world.step("restoring it, and zeroing half of what it filled"):
        world.host.restore(source)
        world.write_sentinels("source", new)
        pages = ZEROED_BYTES // PAGE_BYTES
        world.guest("source", 'dd if=/dev/zero of=/ram/fill bs=4096 count="$1" conv=notrunc', arguments=[str(pages)])
        world.note_memory_sum("source")
    with world.step("putting it to standby again"):
        world.host.standby(source)
    world.reach(Point.ZEROED_SLEPT)
    looks.sleeper_unchanged(world, "zeroed and slept", drop_cache=True)
    with world.step("restoring it, and putting it to standby at once"):
        world.host.restore(source)
        world.host.standby(source)
    world.reach(Point.SLEPT_AGAIN)
    with world.step("restoring it from its third snapshot"):
        inside.wakes_as_it_was(world, "sleeps-add-up", "source", token=new, at="third snapshot")
        inside.zeroed(world, "zeroed-pages-stay-zero", "source", ZEROED_BYTES, at="third snapshot")
    with world.step("restoring the fork of its first sleep"):
        inside.wakes_as_it_was(world, "sleeping-fork-wakes", "sleeper", token=old, at="fork of the first sleep")


SCENARIO = Scenario(
    name="sleeps",
    summary="Three sleeps in a row: pages are zeroed before the second, nothing is written before the third.",
    claims=("sleeps-add-up", "zeroed-pages-stay-zero", "sleeping-fork-unchanged", "sleeping-fork-wakes"),
    run=run_sleeps,
)
