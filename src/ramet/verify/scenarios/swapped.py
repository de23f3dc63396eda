"""The scenario ``swapped``: a VMM whose pages are in swap is put to standby."""

from __future__ import annotations

import os

from ramet.linux import madvise, procfs
from ramet.model import MIB
from ramet.verify import evidence, looks
from ramet.verify.needs import why_no_swap
from ramet.verify.scenarios.scenario import Scenario
from ramet.verify.world import CutShortError, Point, World, boot_source, fresh_token

SWAPPED_MIN_BYTES = 1 * MIB


def run_swapped(world: World) -> None:
    """A VMM whose pages were swapped out is put to standby, twice."""
    why = why_no_swap()
    if why is not None:
        world.ledger.undecided("swapped-pages-are-kept", why, required=False)
        return
    source, token = world.name("source"), fresh_token()
    boot_source(world)
    world.write_sentinels("source", fresh_token())
    world.remember_guest("source")
    swapped = []
    for sleep in ("first", "second"):
        with world.step(f"swapping its VMM out, and putting it to standby for the {sleep} time"):
            swapped.append(_swap_out(world, "source"))
            world.host.standby(source)
        if sleep == "first":
            with world.step("restoring it, and letting it write"):
                world.host.restore(source)
                world.write_sentinels("source", token)
                world.fill("source", seed=2, size_bytes=world.fill_bytes)
                world.note_memory_sum("source")
    world.reach(Point.SWAPPED_SLEPT)
    few = [size for size in swapped if size < SWAPPED_MIN_BYTES]
    if few:
        why = f"the kernel swapped out no more than {few[0]} bytes: is the swap full?"
        world.ledger.undecided("swapped-pages-are-kept", why, required=False)
    told = " and ".join(f"{size // MIB} MiB" for size in swapped)
    with world.step("restoring it"):
        at = f"{told} were swapped out"
        looks.wakes_as_it_was(world, "swapped-pages-are-kept", "source", token=token, at=at)


def _swap_out(world: World, role: str) -> int:
    """Have a VMM's guest memory swapped out; returns how many bytes of the process are in swap then."""
    pid = world.info(role).pid
    if pid is None:
        raise CutShortError(f"{role} has no VMM to swap out.")
    pidfd = os.pidfd_open(pid)
    try:
        for mapping in evidence.guest_memory_mappings(pid):
            madvise.page_out(pidfd, mapping.start, mapping.end)
    finally:
        os.close(pidfd)
    return procfs.smaps_rollup(pid)["Swap"]


SCENARIO = Scenario(
    name="swapped",
    summary="A VMM whose pages were swapped out is put to standby.",
    claims=("swapped-pages-are-kept",),
    run=run_swapped,
)
