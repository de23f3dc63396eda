"""The scenario ``pool``: forks that wait, loaded and paused, and are claimed one after the other."""

from __future__ import annotations

from ramet.errors import GuestError
from ramet.verify import inside, looks
from ramet.verify.scenarios.scenario import Scenario
from ramet.verify.world import CutShortError, Point, World, boot_source, fall_asleep, fresh_token

PARKED = ("parked-a", "parked-b", "parked-c")
FIRST, LAST = PARKED[:2], PARKED[2]
TICKING = """\
cat >/etc/ramet/resume.d/30-stood <<'END'
#!/bin/sh
wc -c </ram/ticks >>/run/ramet/stood
{ cat /proc/sys/kernel/random/uuid; head -c 16 /dev/urandom | od -An -tx1; } >>/run/ramet/drawn
END
chmod 755 /etc/ramet/resume.d/30-stood
cat >/ram/tick.sh <<'END'
echo $$ >/ram/ticking
while :; do printf x >>/ram/ticks; usleep 10000; done
END
"""
"""A workload that ticks on and on; and how far it was, and what the kernel drew, before it ran on: when the fork was parked, and
when it was claimed. Both are kept.
"""


def run_pool(world: World) -> None:
    """Three forks of one source are parked; two are claimed and diverge; then the last one is claimed; then the source wakes."""
    source, old = world.name("source"), fresh_token()
    boot_source(world)
    with world.step("letting it tick on and on"):
        world.guest("source", TICKING)
        world.host.exec(source, ["sh", "/ram/tick.sh"], detach=True)
        world.guest("source", "until [ -s /ram/ticks ]; do sleep 0.1; done")
        world.reach(Point.TICKING)
    fall_asleep(world, old)
    with world.step("parking three forks"):
        parked = world.host.pool(source, size=len(PARKED), memory_policy=world.memory_policy).parked
        world.names.update(zip(PARKED, parked, strict=True))
    for role in PARKED:
        world.inherit(role, "source")
        looks.live_vmm(world, role, ["source", *_others(role)], at="parked")
    looks.source_unchanged(world, "three forks are parked")
    for role in FIRST:
        _claim(world, role)
    world.reach(Point.CLAIMED)
    _are_somebody_else(world, FIRST, at="two are claimed")
    with world.step("letting both write over the same pages and blocks"):
        for role in FIRST:
            inside.sees(world, "siblings-see-source", role, old, at=f"{role} claimed")
            world.write_sentinels(role, fresh_token())
    for role in FIRST:
        looks.live_vmm(world, role, ["source", *_others(role)], at="both have written")
    looks.source_unchanged(world, "both have written")
    _claim(world, LAST)
    _are_somebody_else(world, PARKED, at="all are claimed")
    inside.sees(world, "siblings-see-source", LAST, old, at=f"{LAST} claimed, after the others have written")
    for role in FIRST:
        inside.sees(world, "siblings-keep-apart", role, world.tokens[role], at=f"all are claimed: {role}")
    with world.step("putting them to standby, and restoring one"):
        for role in PARKED:
            world.host.standby(world.name(role))
        role = FIRST[0]
        inside.wakes_as_it_was(
            world, "siblings-keep-apart", role, token=world.tokens[role], at=f"{role} restored from a sleep of its own"
        )
    looks.source_unchanged(world, "all have slept", drop_cache=True)
    _source_draws_apart(world)


def _others(role: str) -> list[str]:
    return [other for other in PARKED if other != role]


def _claim(world: World, role: str) -> None:
    """Claim the fork that has waited longest, and see whether it is the one that plays ``role``, and has stood still."""
    claim, waited = "parked-stands-still", world.info(role)
    with world.step(f"claiming {role}"):
        name = f"verify-{world.tag}-{role}"
        try:
            (made,) = world.host.fork(world.name("source"), name, from_pool=True).instances
        except GuestError as err:
            raise CutShortError(f"{role} could not be claimed: {err.message}") from err
    world.names[role] = name
    problems = []
    if (made.id, made.pid) != (waited.id, waited.pid):
        problems.append(f"it is {made.id} in process {made.pid}, and {waited.id} in {waited.pid} had waited longest")
    at_park, at_claim = (int(text) for text in world.guest(role, "tail -n 2 /run/ramet/stood").split())
    if at_park != at_claim:
        problems.append(
            f"its workload had ticked {at_park} times when it was parked, and {at_claim} when it was claimed"
        )
    found = f"process {made.pid} as before; its workload had ticked {at_claim} times, as when it was parked"
    world.ledger.look(claim, f"{role} claimed", problems, found=found)


def _are_somebody_else(world: World, roles: tuple[str, ...], *, at: str) -> None:
    """No two are called the same or have drawn the same, when they were parked, when they were claimed, or since; nor are they
    called what the source is called.
    """
    theirs = world.identities["source"]
    seen = {theirs.hostname: "the source", theirs.machine_id: "the source"}
    problems = []
    for role in roles:
        who = world.identity(role)
        draws = _draws(world, role)
        world.randomness[role] = set(draws)
        if who.hostname != world.name(role):
            problems.append(f"{role} is called {who.hostname}, not {world.name(role)}")
        for what in (who.hostname, who.machine_id, *draws):
            if what in seen:
                problems.append(f"{role} has {what}, as {seen[what]} has")
            seen[what] = role
    found = f"{len(seen)} names, machine-ids and draws, all different"
    world.ledger.look("claimed-somebody-else", at, problems, found=found)


def _draws(world: World, role: str) -> list[str]:
    """What the kernel drew for the hook, each time that it ran, and draws now."""
    told = [*world.guest(role, "cat /run/ramet/drawn").split("\n"), *sorted(world.draw_randomness(role))]
    return [draw.strip() for draw in told if draw.strip()]


def _source_draws_apart(world: World) -> None:
    """The source wakes from the snapshot that all of them began from: what it draws is none of theirs."""
    with world.step("waking the source"):
        world.host.restore(world.name("source"))
    drawn = {"the source": _draws(world, "source"), **{role: sorted(world.randomness[role]) for role in PARKED}}
    inside.all_differ(world, "claimed-somebody-else", drawn, at="the source has woken")


SCENARIO = Scenario(
    name="pool",
    summary="Three forks of one source are parked, claimed one after the other, and write over the same pages and blocks.",
    claims=(
        "parked-stands-still",
        "claimed-somebody-else",
        "siblings-see-source",
        "siblings-keep-apart",
        "vmm-maps-privately",
        "vmm-cannot-write-others",
        "vmm-confined",
        "source-memory-unchanged",
        "source-disk-unchanged",
        "source-state-unchanged",
    ),
    run=run_pool,
)
