"""Scenarios in which much happens at the moment of the snapshot, or at the moment of many wakings."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ramet.errors import RametError
from ramet.instances.host import Host
from ramet.verify import looks
from ramet.verify.world import CutShortError, Point, World, boot_source, fresh_token

FILL_BYTES = 16 << 20
FLIGHT_FORKS = ("flight-a", "flight-b")
UNDER_WAY_S = 30.0
DRAWING_FORKS = 20
DRAWS = 5
TALK = "while :; do echo 0123456789abcdef0123456789abcdef; done"
WRITE = "while :; do dd if=/dev/urandom of=/data/flight bs=64k count=16 conv=fsync 2>/dev/null; done"
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


# -- requests in flight -------------------------------------------------------------------------------------------


def run_flight(world: World) -> None:
    """A source is forked, and put to standby, while commands talk, pings are answered and its disk is written."""
    source = world.name("source")
    boot_source(world, FILL_BYTES)
    world.host.exec(source, ["sh", "-c", WRITE], detach=True)
    with _requests(world):
        with world.step("forking it twice while requests are under way"):
            world.host.fork(source, [world.name(role) for role in FLIGHT_FORKS])
        with world.step("putting it to standby while requests are under way"):
            world.host.standby(source)
    for role in (*FLIGHT_FORKS, "source"):
        with world.step(f"restoring {role}, and asking it"):
            world.host.restore(world.name(role))
            world.reach(Point.FLIGHT_RESTORED)
            looks.answers(world, "answers-after-flight", role, token=fresh_token())


@contextmanager
def _requests(world: World) -> Iterator[None]:
    """A command that talks without end and pings one after the other, from before the block until they fail or it has ended."""
    name, home = world.name("source"), world.host.home
    ended = threading.Event()
    under_way = {"talk": threading.Event(), "ping": threading.Event()}

    def heard(_: bytes) -> None:
        under_way["talk"].set()
        if ended.is_set():
            raise CutShortError("That was enough.")

    def talk() -> None:
        Host(home).exec(name, ["sh", "-c", TALK], stdout=heard)

    def ping() -> None:
        while not ended.is_set():
            Host(home).ping(name)
            under_way["ping"].set()

    threads = [threading.Thread(target=_until_it_fails, args=(request,), daemon=True) for request in (talk, ping)]
    for thread in threads:
        thread.start()
    try:
        for what, event in under_way.items():
            if not event.wait(UNDER_WAY_S):
                raise CutShortError(f"{what} was not answered within {UNDER_WAY_S:g} s.")
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join(UNDER_WAY_S)


def _until_it_fails(request: Callable[[], None]) -> None:
    """A capture may cut a request off, and a sleep does: how it ends is not what is looked at."""
    try:
        request()
    except RametError:
        return


# -- randomness ---------------------------------------------------------------------------------------------------


def run_draws(world: World) -> None:
    """Twenty forks of one snapshot draw from the kernel as soon as they wake."""
    source = world.name("source")
    boot_source(world, FILL_BYTES)
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
            world.host.fork(source, [world.name(role)], start=True)
            drawn[role] = _first_draws(world, role)
            world.host.remove(world.name(role), force=True)
    looks.all_differ(world, "forks-draw-apart", drawn, at=f"{DRAWING_FORKS} forks woken")


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
