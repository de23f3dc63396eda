"""The scenario ``flight``: requests and writes are under way at the moment of the snapshot."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ramet.errors import RametError
from ramet.instances.host import Host
from ramet.verify import looks
from ramet.verify.scenarios.scenario import Scenario
from ramet.verify.world import CutShortError, Point, World, boot_source, fresh_token

FLIGHT_FORKS = ("flight-a", "flight-b")
UNDER_WAY_S = 30.0
TALK = "while :; do echo 0123456789abcdef0123456789abcdef; done"
WRITE = "while :; do dd if=/dev/urandom of=/data/flight bs=64k count=16 conv=fsync 2>/dev/null; done"


def run_flight(world: World) -> None:
    """A source is forked, and put to standby, while commands talk, pings are answered and its disk is written."""
    source = world.name("source")
    boot_source(world)
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


SCENARIO = Scenario(
    name="flight",
    summary="A source is forked and put to standby while requests and writes are under way.",
    claims=("answers-after-flight",),
    run=run_flight,
)
