"""Scenarios about one moment: forks of a source that runs and writes, and many restores of one snapshot."""

from __future__ import annotations

import os
import time

from ramet import process
from ramet.errors import CommandError, RametError, UnsupportedError
from ramet.model import State
from ramet.verify import looks
from ramet.verify.world import CutShortError, Point, World, boot_source, fresh_token

LIVE_FORKS = ("live-a", "live-b")
RESTORES = 3
FILL_BYTES = 16 << 20
COUNTS_WITHIN_S = 30.0
E2FSCK_S = 60.0
COUNTER = """\
cat >/ram/count.sh <<'END'
i=0
while :; do
    i=$((i+1))
    printf %08d $i | dd of=/data/count bs=8 conv=notrunc,fsync 2>/dev/null
    echo $i >/ram/count.new; mv /ram/count.new /ram/count
done
END
cat >/etc/ramet/resume.d/10-look <<'END'
#!/bin/sh
echo 3 >/proc/sys/vm/drop_caches
cat /ram/count /data/count >/run/ramet/seen
END
chmod 755 /etc/ramet/resume.d/10-look
"""
"""A number that goes to one block of the disk, then to RAM, and on; and a look at both in a woken fork, before its workload runs
on. The block is always the same: what the guest knows of where it is may be older than the disk.
"""


def run_live(world: World) -> None:
    """Forks of a source that writes all the time: memory and disk must be of one instant, and the source runs on."""
    source = world.name("source")
    boot_counting_source(world)
    before = count(world)
    with world.step("forking it twice while it writes"):
        world.host.fork(source, [world.name(role) for role in LIVE_FORKS])
    after = count(world)
    world.reach(Point.LIVE_FORKED)
    _look_whether_the_source_runs_on(world, after)
    for role in LIVE_FORKS:
        _look_at_the_disk(world, role)
    with world.step("restoring both forks"):
        for role in LIVE_FORKS:
            look_at_the_pair(world, "live-pair-agrees", role, before, after)
    looks.live_vmm(world, LIVE_FORKS[0], ["source", LIVE_FORKS[1]], at="both restored")


def boot_counting_source(world: World) -> None:
    """Boot a source whose workload counts, on its disk and then in RAM, on and on."""
    boot_source(world, FILL_BYTES)
    with world.step("letting it count, to disk and to RAM"):
        world.guest("source", COUNTER)
        world.host.exec(world.name("source"), ["sh", "/ram/count.sh"], detach=True)
        counts_past(world, 0)


def count(world: World) -> int:
    """How far the source has counted in RAM."""
    return int(world.guest("source", "cat /ram/count 2>/dev/null || echo 0"))


def counts_past(world: World, number: int) -> int:
    """Wait until the source has counted past ``number``; returns how far it is.

    Raises:
        CutShortError: if it does not.
    """
    end = time.monotonic() + COUNTS_WITHIN_S
    while time.monotonic() < end:
        reached = count(world)
        if reached > number + 1:
            return reached
    raise CutShortError(f"The source does not count past {number} within {COUNTS_WITHIN_S:g} s.")


def _look_whether_the_source_runs_on(world: World, after: int) -> None:
    claim, at = "source-runs-on", "forked while it wrote"
    try:
        state = world.info("source").state
        problems = [] if state is State.RUNNING else [f"the source is {state.value}"]
        found = f"it counts on: {after} at the fork, then {counts_past(world, after)}"
    except RametError as err:
        problems, found = [str(err).splitlines()[0]], ""
    world.ledger.look(claim, at, problems, found=found)


def _look_at_the_disk(world: World, role: str) -> None:
    """The fork's published disk by itself, before anything mounts or replays it."""
    claim, disk = "live-disk-clean", world.snapshot_dir(role) / "disk.raw"
    try:
        e2fsck = process.find_program("e2fsck", package="e2fsprogs")
        done = process.run([e2fsck, "-f", "-n", str(disk)], timeout_s=E2FSCK_S, env={**os.environ, "LC_ALL": "C"})
    except UnsupportedError as err:
        world.ledger.undecided(claim, err.message, required=True)
        return
    except CommandError as err:
        world.ledger.look(claim, role, [f"e2fsck ended with status {err.status}: {err.stderr_tail[-200:]}"], found="")
        return
    said = done.stdout.decode(errors="replace").strip()
    problems = ["its journal must be replayed"] if "recover" in said + done.stderr else []
    world.ledger.look(claim, role, problems, found=said.splitlines()[-1])


def look_at_the_pair(world: World, claim: str, role: str, before: int, after: int | None, note: str = "") -> None:
    """Restore a counting guest, and compare what RAM and disk said when it woke; it cannot have counted past ``after``."""
    try:
        world.host.restore(world.name(role))
        ram, disk = (int(text) for text in world.guest(role, "cat /run/ramet/seen").split())
    except (*looks.BROKEN, ValueError) as err:
        world.ledger.look(claim, f"{role} restored", [f"it cannot tell: {str(err).splitlines()[0]}"], found="")
        return
    problems = []
    if disk - ram not in (0, 1):
        problems.append(f"RAM says {ram} and the disk {disk}: they are of two instants")
    if ram < before:
        problems.append(f"RAM says {ram}; the source had said {before} before")
    if after is not None and ram > after:
        problems.append(f"RAM says {ram}; the source said {after} after the fork")
    world.ledger.look(claim, f"{role} restored", problems, found=f"RAM {ram}, disk {disk}{note}")


def run_rewind(world: World) -> None:
    """One snapshot of a running source, gone back to again and again."""
    old = fresh_token()
    boot_source(world, FILL_BYTES)
    world.write_sentinels("source", old)
    looks.remember_guest(world, "source")
    with world.step("taking a named snapshot while it runs"):
        golden = world.named_snapshot("source", "golden")
    world.scratch |= {"dir-golden": golden.dir, "token-golden": old}
    world.remember("golden")
    for number in range(1, RESTORES + 1):
        with world.step(f"letting it diverge, and going back ({number} of {RESTORES})"):
            world.write_sentinels("source", fresh_token())
            looks.rolls_back(world, "rewind-is-exact", "source", golden.id, token=old, at=f"restore {number}")
        looks.files_unchanged(world, "rewind-changes-nothing", "golden", at=f"restore {number}")
        world.reach(Point.REWOUND)
