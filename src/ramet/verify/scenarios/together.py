"""The scenario ``together``: one command forks a source that another puts to standby."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass

from ramet import helpers
from ramet.errors import CommandError, RametError
from ramet.signals import signals_held
from ramet.verify import looks
from ramet.verify.scenarios import counting
from ramet.verify.scenarios.scenario import Scenario
from ramet.verify.world import CutShortError, Point, World

HEAD_STARTS_S = {"forked-first": 0.15, "forked-with": 0.0, "forked-last": -0.15}
"""The forks that are asked for while the source is put to standby, and how many seconds before that."""
COMMAND_S = 120.0
BUSY_STATUSES = (4, 6)
"""Of a command: another one is at work on the instance, or has just changed its state."""


@dataclass(slots=True)
class _Command:
    """A command in a thread of its own, and how it ended."""

    argv: list[str]
    delay_s: float
    began_s: float = 0.0
    ended_s: float = 0.0
    refused: str | None = None
    error: RametError | OSError | None = None

    def run(self) -> None:
        time.sleep(self.delay_s)
        self.began_s = time.monotonic()
        try:
            helpers.run(self.argv, timeout_s=COMMAND_S)
        except CommandError as err:
            self.refused = err.stderr_tail.strip()
            self.error = None if err.status in BUSY_STATUSES else err
        except (RametError, OSError) as err:
            self.error = err
        self.ended_s = time.monotonic()


def run_together(world: World) -> None:
    """A source that writes all the time is forked by one command while another puts it to standby."""
    counting.boot_counting_source(world)
    world.reach(Point.COUNTING)
    for role, head_start_s in HEAD_STARTS_S.items():
        before = counting.count(world)
        with world.step(f"forking it into {role} and putting it to standby, at once"):
            overlap_s = _fork_and_sleep(world, role, head_start_s)
        world.reach(Point.TOGETHER_SLEPT)
        note = f"; {_which_came_first(world, role)}, both commands ran for {overlap_s:.2f} s"
        with world.step(f"restoring {role} and the source"):
            counting.look_at_the_pair(world, "together-pair-agrees", role, before, None, note=note)
            counting.look_at_the_pair(world, "together-source-wakes", "source", before, None)
    looks.live_vmm(world, "forked-first", ["source", "forked-last"], at="all restored")
    with world.step("seeing whether the source counts on"):
        after = counting.count(world)
        counting.look_whether_it_counts_on(world, "together-source-wakes", after, at="all restored")


def _which_came_first(world: World, role: str) -> str:
    begun_from = world.info(role).lineage[-1].snapshot_id
    asleep = world.info("source").snapshot
    return "the sleep came first" if asleep is not None and begun_from == asleep.id else "the fork came first"


def _fork_and_sleep(world: World, role: str, head_start_s: float) -> float:
    """Two commands at once; returns for how many seconds both ran. One that was refused, since the other was at work, is asked
    for again.
    """
    source, fork = world.name("source"), world.name(role)
    ramet = [sys.executable, "-P", "-m", "ramet.cli", "--home", str(world.host.home)]
    policy = ["--memory-policy", world.memory_policy.value]
    forking = _Command([*ramet, "fork", *policy, source, fork], max(-head_start_s, 0))
    sleeping = _Command([*ramet, "standby", source], max(head_start_s, 0))
    threads = [threading.Thread(target=command.run) for command in (forking, sleeping)]
    with signals_held():  # what a command has begun is removed at the end: it must have ended by then
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for command, claim in ((forking, "together-pair-agrees"), (sleeping, "together-source-wakes")):
        if isinstance(command.error, CommandError):
            world.ledger.look(
                claim, f"{role} forked and source put to standby", [f"it failed: {command.refused}"], found=""
            )
            raise CutShortError(f"{command.argv[-2]} failed while the other command ran: {command.refused}")
        if command.error is not None:
            raise command.error
    if sleeping.refused:
        world.host.standby(source)
    if forking.refused:
        world.fork("source", role)
    return max(min(forking.ended_s, sleeping.ended_s) - max(forking.began_s, sleeping.began_s), 0)


SCENARIO = Scenario(
    name="together",
    summary="A source that writes all the time is forked while another command puts it to standby.",
    claims=(
        "together-pair-agrees",
        "together-source-wakes",
        "vmm-maps-privately",
        "vmm-cannot-write-others",
        "vmm-confined",
    ),
    run=run_together,
)
