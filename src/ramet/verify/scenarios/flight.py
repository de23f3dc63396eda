"""The scenario ``flight``: requests and writes are under way at the moment of the snapshot."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ramet.errors import RametError
from ramet.instances.host import Host
from ramet.verify import inside
from ramet.verify.scenarios.scenario import Scenario
from ramet.verify.world import CutShortError, Point, World, boot_source, fresh_token

FLIGHT_FORKS = ("flight-a", "flight-b")
UNDER_WAY_S = 30.0
WRITE = "while :; do dd if=/dev/urandom of=/data/flight bs=64k count=16 conv=fsync 2>/dev/null; done"


def run_flight(world: World) -> None:
    """A source is forked, and put to standby, while a command talks and is talked to, and its disk is written."""
    source = world.name("source")
    boot_source(world)
    world.host.exec(source, ["sh", "-c", WRITE], detach=True)
    with world.step("forking it twice while requests are under way"), _request(world):
        world.fork("source", *FLIGHT_FORKS)
    with world.step("putting it to standby while requests are under way"), _request(world):
        world.host.standby(source)
    for role in (*FLIGHT_FORKS, "source"):
        with world.step(f"restoring {role}, and asking it"):
            inside.wakes_and_answers(
                world,
                "answers-after-flight",
                role,
                token=fresh_token(),
                woken=lambda: world.reach(Point.FLIGHT_RESTORED),
            )


@contextmanager
def _request(world: World) -> Iterator[None]:
    """A command that says again what it is told, without end in both directions, before the block begins; until it fails, or the
    block has ended.
    """
    ended, heard_of = threading.Event(), threading.Event()

    def heard(_: bytes) -> None:
        heard_of.set()
        if ended.is_set():
            raise CutShortError("That was enough.")

    def talk() -> None:
        """A capture may cut it off, and a sleep does: how it ends is not what is looked at."""
        zeros = os.open("/dev/zero", os.O_RDONLY | os.O_CLOEXEC)
        try:
            with suppress(RametError):
                Host(world.host.home).exec(world.name("source"), ["cat"], stdin=zeros, stdout=heard)
        finally:
            os.close(zeros)

    thread = threading.Thread(target=talk, daemon=True)
    thread.start()
    try:
        if not heard_of.wait(UNDER_WAY_S):
            raise CutShortError(f"A command in the source said nothing within {UNDER_WAY_S:g} s.")
        yield
    finally:
        ended.set()
        thread.join(UNDER_WAY_S)


SCENARIO = Scenario(
    name="flight",
    summary="A source is forked and put to standby while requests and writes are under way.",
    claims=("answers-after-flight",),
    run=run_flight,
)
