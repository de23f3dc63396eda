"""A guest that counts, on its disk and then in RAM, on and on: it can tell whether disk and memory are of one instant."""

from __future__ import annotations

from ramet import process
from ramet.errors import GuestError, RametError
from ramet.model import State
from ramet.verify import inside
from ramet.verify.world import CutShortError, World, boot_source

COUNTS_WITHIN_S = 30.0
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

SEEN = "cat /run/ramet/seen 2>/dev/null || true"
BOTH = 2


def boot_counting_source(world: World) -> None:
    """Boot a source whose workload counts, on its disk and then in RAM, on and on."""
    boot_source(world)
    with world.step("letting it count, to disk and to RAM"):
        world.guest("source", COUNTER)
        world.host.exec(world.name("source"), ["sh", "/ram/count.sh"], detach=True)
        counts_past(world, 0)


def count(world: World) -> int:
    """How far the source has counted in RAM."""
    return int(world.guest("source", "cat /ram/count 2>/dev/null || echo 0"))


def counts_past(world: World, number: int) -> int:
    """Wait until the source has counted two steps past ``number``; returns how far it is.

    Raises:
        CutShortError: if it does not.
    """

    def reached() -> int | None:
        found = count(world)
        return found if found > number + 1 else None

    try:
        return process.wait_until(reached, COUNTS_WITHIN_S, what="the source to count on")
    except TimeoutError as err:
        raise CutShortError(f"The source does not count past {number} within {COUNTS_WITHIN_S:g} s.") from err


def look_at_the_pair(world: World, claim: str, role: str, before: int, after: int | None, note: str = "") -> None:
    """Restore a counting guest, and compare what RAM and disk said when it woke; it cannot have counted past ``after``."""
    name = world.name(role)
    try:
        world.host.restore(name)
        seen = world.guest(role, SEEN)
        if len(seen.split()) < BOTH:
            # A hook has 10 s, which a busy host may not give a guest. What the snapshot holds it still holds.
            woke_from = world.snapshot_dir(role).name
            world.host.restore(name, snapshot=woke_from, discard_memory=True, discard_disk=True)
            seen = world.guest(role, SEEN)
        if len(seen.split()) < BOTH:
            raise GuestError("its resume hook did not look, twice")
        ram, disk = (int(text) for text in seen.split())
    except (*inside.BROKEN, ValueError) as err:
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


def look_whether_it_counts_on(world: World, claim: str, after: int, *, at: str) -> None:
    """The source runs, and counts on from ``after``."""
    try:
        state = world.info("source").state
        problems = [] if state is State.RUNNING else [f"the source is {state.value}"]
        found = f"it counts on: {after} then, {counts_past(world, after)} later"
    except RametError as err:
        problems, found = [str(err).splitlines()[0]], ""
    world.ledger.look(claim, at, problems, found=found)
