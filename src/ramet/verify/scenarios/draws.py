"""The scenario ``draws``: the first randomness of twenty forks."""

from __future__ import annotations

from ramet.verify import inside
from ramet.verify.scenarios.scenario import Scenario
from ramet.verify.world import CutShortError, Point, World, boot_source

DRAWING_FORKS = 20
DRAWS = 5
DRAW = """\
cat >/etc/ramet/resume.d/20-draw <<'END'
#!/bin/sh
{ cat /proc/sys/kernel/random/uuid; head -c 16 /dev/urandom | od -An -tx1; } >/run/ramet/drawn
wc -l </ram/draws >/run/ramet/drawn-before
END
chmod 755 /etc/ramet/resume.d/20-draw
cat >/ram/draw.sh <<'END'
while :; do cat /proc/sys/kernel/random/uuid; done >>/ram/draws
END
"""
"""What a guest draws before its workload runs on, and a workload that draws all the time."""


def run_draws(world: World) -> None:
    """Twenty forks of one snapshot draw from the kernel as soon as they wake."""
    source = world.name("source")
    boot_source(world)
    with world.step("letting it draw all the time, and putting it to standby"):
        world.guest("source", DRAW)
        world.reach(Point.DRAWING)
        world.host.exec(source, ["sh", "/ram/draw.sh"], detach=True)
        world.guest("source", "until [ -s /ram/draws ]; do sleep 0.1; done")
        world.host.standby(source)
    drawn: dict[str, list[str]] = {}
    with world.step(f"forking it {DRAWING_FORKS} times, one after the other, and reading what each drew first"):
        for number in range(1, DRAWING_FORKS + 1):
            role = f"drawer-{number}"
            world.fork("source", role, start=True)
            drawn[role] = _first_draws(world, role)
            world.host.remove(world.name(role), force=True)
    inside.all_differ(world, "forks-draw-apart", drawn, at=f"{DRAWING_FORKS} forks woken")


def _first_draws(world: World, role: str) -> list[str]:
    """What the hook drew before the workload ran on, and what the workload drew first. Its very first is left out: it may have
    been drawn before the snapshot, and written down after it.
    """
    told = world.guest(
        role,
        'cat /run/ramet/drawn; from=$(cat /run/ramet/drawn-before); until [ "$(wc -l </ram/draws)" -ge "$((from + 1 + $1))" ]; '
        'do sleep 0.01; done; tail -n "+$((from + 2))" /ram/draws | head -n "$1"',
        arguments=[str(DRAWS)],
    )
    draws = [line.strip() for line in told.split("\n") if line.strip()]
    if len(draws) != DRAWS + 2:
        raise CutShortError(f"{role} drew {len(draws)} times instead of {DRAWS + 2}.")
    return draws


SCENARIO = Scenario(
    name="draws",
    summary="Twenty forks of one snapshot draw randomness as soon as they wake.",
    claims=("forks-draw-apart",),
    run=run_draws,
)
