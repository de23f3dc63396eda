"""Scenarios about sleeping: again and again, with pages swapped out, and while somebody forks."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from ramet import process
from ramet.errors import CommandError, ConflictError
from ramet.linux import madvise, procfs
from ramet.verify import evidence, looks, moments
from ramet.verify.world import CutShortError, Point, World, boot_source, fresh_token

FILL_BYTES = 16 << 20
ZEROED_BYTES = 8 << 20
SWAPPED_MIN_BYTES = 1 << 20
TOGETHER = (("forked-first", 0.3), ("forked-last", 0.0))
"""The forks that are asked for while the source is put to standby, and how many seconds of head start each has."""
TOGETHER_S = 180.0
BUSY_STATUSES = (4, 6)
"""Of `ramet fork`: another command is at work on the source, or has just changed its state."""


def run_sleeps(world: World) -> None:
    """A source sleeps three times in a row: it zeroes pages before the second sleep, and writes nothing before the third."""
    source, old, new = world.name("source"), fresh_token(), fresh_token()
    boot_source(world, FILL_BYTES)
    with world.step("putting it to standby"):
        world.write_sentinels("source", old)
        looks.remember_guest(world, "source")
        world.host.standby(source)
    with world.step("forking it"):
        world.host.fork(source, [world.name("sleeper")])
        looks.remember_files(world, "sleeper")
        looks.inherit(world, "sleeper", "source")
    with world.step("restoring it, and zeroing half of what it filled"):
        world.host.restore(source)
        world.write_sentinels("source", new)
        pages = ZEROED_BYTES // 4096
        world.guest("source", 'dd if=/dev/zero of=/ram/fill bs=4096 count="$1" conv=notrunc', arguments=[str(pages)])
        world.note_memory_sum("source")
    with world.step("putting it to standby again"):
        world.host.standby(source)
    world.reach(Point.ZEROED_SLEPT)
    looks.fork_unchanged(world, "zeroed and slept", drop_cache=True)
    with world.step("restoring it, and putting it to standby at once"):
        world.host.restore(source)
        world.host.standby(source)
    world.reach(Point.SLEPT_AGAIN)
    with world.step("restoring it from its third snapshot"):
        looks.wakes_as_it_was(world, "sleeps-add-up", "source", token=new, at="third snapshot")
        looks.zeroed(world, "zeroed-pages-stay-zero", "source", ZEROED_BYTES, at="third snapshot")
    with world.step("restoring the fork of its first sleep"):
        looks.wakes_as_it_was(world, "sleeping-fork-wakes", "sleeper", token=old, at="fork of the first sleep")


# -- swap ---------------------------------------------------------------------------------------------------------


def why_no_swap() -> str | None:
    """None if this host has swap; else what to do about it."""
    if len(Path("/proc/swaps").read_text().splitlines()) > 1:
        return None
    return "this host has no swap; `swapon` a file or a zram device, and try again"


def run_swapped(world: World) -> None:
    """A VMM whose pages were swapped out is put to standby, twice."""
    why = why_no_swap()
    if why is not None:
        world.ledger.undecided("swapped-pages-are-kept", why, required=False)
        return
    source, token = world.name("source"), fresh_token()
    boot_source(world, FILL_BYTES)
    world.write_sentinels("source", fresh_token())
    looks.remember_guest(world, "source")
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
    told = " and ".join(f"{size >> 20} MiB" for size in swapped)
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


# -- two commands at once -----------------------------------------------------------------------------------------


def run_together(world: World) -> None:
    """A source that writes all the time is forked by one command while another puts it to standby."""
    moments.boot_counting_source(world)
    world.reach(Point.COUNTING)
    for role, head_start_s in TOGETHER:
        before = moments.count(world)
        with world.step(f"forking it into {role} and putting it to standby, at once"):
            _fork_while_it_goes_to_sleep(world, role, head_start_s)
        world.reach(Point.TOGETHER_SLEPT)
        with world.step(f"restoring {role} and the source"):
            moments.look_at_the_pair(
                world, "together-pair-agrees", role, before, None, note=_which_came_first(world, role)
            )
            moments.look_at_the_pair(world, "together-source-wakes", "source", before, None)
    looks.live_vmm(world, TOGETHER[0][0], ["source", TOGETHER[1][0]], at="all restored")
    with world.step("seeing whether the source counts on"):
        moments.counts_past(world, moments.count(world))


def _which_came_first(world: World, role: str) -> str:
    begun_from = world.info(role).lineage[-1].snapshot_id
    asleep = world.info("source").snapshot
    return "; the sleep came first" if asleep is not None and begun_from == asleep.id else "; the fork came first"


def _fork_while_it_goes_to_sleep(world: World, role: str, head_start_s: float) -> None:
    """Two commands at once. Either may be refused because the other one was first; then it is asked for again."""
    source = world.name("source")
    argv = [sys.executable, "-m", "ramet.cli", "--home", str(world.host.home), "fork", source, world.name(role)]
    refused: list[CommandError] = []

    def fork() -> None:
        try:
            process.run(argv, timeout_s=TOGETHER_S)
        except CommandError as err:
            refused.append(err)

    forking = threading.Thread(target=fork)
    forking.start()
    forking.join(head_start_s)
    try:
        world.host.standby(source)
    except ConflictError:
        forking.join()
        world.host.standby(source)
    finally:
        forking.join()
    if refused:
        if refused[0].status not in BUSY_STATUSES:
            raise CutShortError(f"The fork failed: {refused[0].stderr_tail.strip()}")
        world.host.fork(source, [world.name(role)])
