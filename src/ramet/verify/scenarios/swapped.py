"""The scenario ``swapped``: a VMM whose pages are in swap is put to standby."""

from __future__ import annotations

import os

from ramet.linux import madvise, procfs
from ramet.model import MIB
from ramet.verify import evidence, inside
from ramet.verify.needs import why_no_swap
from ramet.verify.scenarios.scenario import Scenario
from ramet.verify.world import CutShortError, Point, World, boot_source, fresh_token

CLAIM = "swapped-pages-are-kept"
SWAPPED_MIN_BYTES = 1 * MIB


def run_swapped(world: World) -> None:
    """A VMM whose pages were swapped out is put to standby, twice."""
    why = why_no_swap()
    if why is not None:
        world.ledger.undecided(CLAIM, why, required=False)
        return
    source, token = world.name("source"), fresh_token()
    boot_source(world)
    world.write_sentinels("source", fresh_token())
    world.remember_guest("source")
    swapped = []
    with world.step("swapping its VMM out, and putting it to standby"):
        swapped.append(_swap_out(world, "source"))
        world.host.standby(source)
    with world.step("restoring it, and letting it write"):
        world.host.restore(source)
        world.write_sentinels("source", token)
        world.fill("source", seed=2, size_bytes=world.fill_bytes)
        world.note_memory_sum("source")
    with world.step("swapping its VMM out again, and putting it to standby"):
        swapped.append(_swap_out(world, "source"))
        world.host.standby(source)
    world.reach(Point.SWAPPED_SLEPT)
    sizes = [size for size in swapped if size is not None]
    if min(sizes, default=0) < SWAPPED_MIN_BYTES:
        why = f"the kernel has swapped out too little of it ({min(sizes, default=0)} bytes): is the swap full?"
        world.ledger.undecided(CLAIM, why, required=False)
    told = " and ".join(f"{size // MIB} MiB" for size in sizes)
    with world.step("restoring it"):
        inside.wakes_as_it_was(world, CLAIM, "source", token=token, at=f"{told} were swapped out")


def _swap_out(world: World, role: str) -> int | None:
    """Have a VMM's guest memory swapped out; returns how many bytes of the process are in swap then, None if it maps no file for
    its guest's memory (a Firecracker that has booted).

    Raises:
        CutShortError: if the kernel refuses.
    """
    pid = world.info(role).pid
    if pid is None:
        raise CutShortError(f"{role} has no VMM to swap out.")
    mappings = evidence.guest_memory_mappings(pid)
    pidfd = os.pidfd_open(pid)
    try:
        for mapping in mappings:
            madvise.page_out(pidfd, mapping.start, mapping.end)
    except OSError as err:
        raise CutShortError(f"process_madvise on process {pid}: {err.strerror}") from err
    finally:
        os.close(pidfd)
    return procfs.smaps_rollup(pid)["Swap"] if mappings else None


SCENARIO = Scenario(
    name="swapped",
    summary="A VMM whose pages were swapped out is put to standby.",
    claims=(CLAIM,),
    run=run_swapped,
)
