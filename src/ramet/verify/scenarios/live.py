"""The scenario ``live``: a source that writes all the time is forked while it runs."""

from __future__ import annotations

import os

from ramet import helpers
from ramet.errors import CommandError, UnsupportedError
from ramet.verify import looks
from ramet.verify.scenarios import counting
from ramet.verify.scenarios.scenario import Scenario
from ramet.verify.world import Point, World

LIVE_FORKS = ("live-a", "live-b")
E2FSCK_S = 60.0


def run_live(world: World) -> None:
    """Forks of a source that writes all the time: memory and disk must be of one instant, and the source runs on."""
    counting.boot_counting_source(world)
    before = counting.count(world)
    with world.step("forking it twice while it writes"):
        world.fork("source", *LIVE_FORKS)
    after = counting.count(world)
    world.reach(Point.LIVE_FORKED)
    counting.look_whether_it_counts_on(world, "source-runs-on", after, at="forked while it wrote")
    for role in LIVE_FORKS:
        _look_at_the_disk(world, role)
    with world.step("restoring both forks"):
        for role in LIVE_FORKS:
            counting.look_at_the_pair(world, "live-pair-agrees", role, before, after)
    looks.live_vmm(world, LIVE_FORKS[0], ["source", LIVE_FORKS[1]], at="both restored")


def _look_at_the_disk(world: World, role: str) -> None:
    """The fork's published disk by itself, before anything mounts or replays it."""
    claim, disk = "live-disk-clean", world.snapshot_dir(role) / "disk.raw"
    try:
        e2fsck = helpers.find_program("e2fsck", package="e2fsprogs")
        done = helpers.run([e2fsck, "-f", "-n", str(disk)], timeout_s=E2FSCK_S, env={**os.environ, "LC_ALL": "C"})
    except UnsupportedError as err:
        world.ledger.undecided(claim, err.message, required=True)
        return
    except CommandError as err:
        world.ledger.look(claim, role, [f"e2fsck ended with status {err.status}: {err.stderr_tail[-200:]}"], found="")
        return
    said = done.stdout.decode(errors="replace").strip()
    problems = ["its journal must be replayed"] if "recover" in said + done.stderr else []
    world.ledger.look(claim, role, problems, found=said.splitlines()[-1])


SCENARIO = Scenario(
    name="live",
    summary="A source that writes all the time is forked while it runs.",
    claims=(
        "live-pair-agrees",
        "live-disk-clean",
        "source-runs-on",
        "vmm-maps-privately",
        "vmm-cannot-write-others",
        "vmm-confined",
    ),
    run=run_live,
)
