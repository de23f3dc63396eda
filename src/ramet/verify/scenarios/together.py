"""The scenario ``together``: one command forks a source that another puts to standby."""

from __future__ import annotations

import sys
import threading

from ramet import process
from ramet.errors import CommandError, ConflictError
from ramet.verify import looks
from ramet.verify.scenarios import counting
from ramet.verify.scenarios.scenario import Scenario
from ramet.verify.world import CutShortError, Point, World

TOGETHER = (("forked-first", 0.3), ("forked-last", 0.0))
"""The forks that are asked for while the source is put to standby, and how many seconds of head start each has."""
TOGETHER_S = 180.0
BUSY_STATUSES = (4, 6)
"""Of `ramet fork`: another command is at work on the source, or has just changed its state."""


def run_together(world: World) -> None:
    """A source that writes all the time is forked by one command while another puts it to standby."""
    counting.boot_counting_source(world)
    world.reach(Point.COUNTING)
    for role, head_start_s in TOGETHER:
        before = counting.count(world)
        with world.step(f"forking it into {role} and putting it to standby, at once"):
            _fork_while_it_goes_to_sleep(world, role, head_start_s)
        world.reach(Point.TOGETHER_SLEPT)
        with world.step(f"restoring {role} and the source"):
            counting.look_at_the_pair(
                world, "together-pair-agrees", role, before, None, note=_which_came_first(world, role)
            )
            counting.look_at_the_pair(world, "together-source-wakes", "source", before, None)
    looks.live_vmm(world, TOGETHER[0][0], ["source", TOGETHER[1][0]], at="all restored")
    with world.step("seeing whether the source counts on"):
        counting.counts_past(world, counting.count(world))


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


SCENARIO = Scenario(
    name="together",
    summary="A source that writes all the time is forked while another command puts it to standby.",
    claims=("together-pair-agrees", "together-source-wakes", "vmm-maps-privately", "vmm-cannot-write-others"),
    run=run_together,
)
