"""Many commands at once on the same few instances and their forks: each does what it says or is refused in words, nobody waits
for ever, and afterwards the store is whole and every guest is what it was (H42).
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from ramet import Host
from ramet.model import InstanceInfo, State
from tests.artifacts import TOLD
from tests.file_systems import WHOLE
from tests.vm.command_line import CommandLine
from tests.vm.cut_short import MARKS, check_guest, check_owners
from tests.vm.guests import sh

NAMES = ("web", "a", "b", "c", "d")
RUNS = 3 if WHOLE else 1
PROCESSES = 8 if WHOLE else 4
VERBS_EACH = 25 if WHOLE else 12
LONGEST_S = 300.0
EXEC = ("--timeout", "30", "--", "true")
"""With a limit: the guest may be paused, and nobody has to resume it."""
REFUSALS = {2, 3, 4, 5, 6}
"""Of a command that came too late or too early: another's snapshot, not found, in another state, in use, locked."""
VMM_DIED, GUEST, GUEST_TIMEOUT, TIMED_OUT = 11, 15, 16, 124
pytestmark = pytest.mark.parametrize("file_system", ["ext4"], indirect=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Did:
    """One command of the storm."""

    argv: tuple[str, ...]
    status: int
    said: str
    took_s: float


def verbs(chance: random.Random) -> Iterator[tuple[str, ...]]:
    """What one of the processes does."""
    while True:
        one, other = chance.choice(NAMES), chance.choice(NAMES[1:])
        yield chance.choice(
            (
                ("standby", one),
                ("standby", one),
                ("restore", one),
                ("restore", one),
                ("fork", one, other),
                ("fork", one, other),
                ("fork", one, other, "--start"),
                ("fork", "web", other),
                ("pause", one),
                ("resume", one),
                ("exec", one, *EXEC),
                ("snapshot", "create", one, f"s{chance.randrange(3)}"),
                ("snapshot", "rm", f"s{chance.randrange(3)}"),
                ("restore", one, "--snapshot", f"s{chance.randrange(3)}", "--discard-memory", "--discard-disk"),
                ("rm", other, "--force"),
                ("stop", other, "--force", "--timeout", "0.1"),
                ("ls",),
                ("show", one),
                ("snapshot", "ls"),
                ("doctor", "--store"),
                ("du",),
            )
        )


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("run", range(RUNS))
def test_a_storm_of_commands(host: Host, run: int, record_property: Callable[[str, object], None]) -> None:
    command = CommandLine(host.home)
    host.create("web", disk_bytes=64 << 20)
    sh(host, "web", MARKS)
    host.fork("web", ["a", "b", "c"])
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")

    def storm(number: int) -> list[Did]:
        done = []
        for _, argv in zip(range(VERBS_EACH), verbs(random.Random(f"{seed} {number}")), strict=False):
            began = time.monotonic()
            ended = command.run(*argv, timeout_s=LONGEST_S)
            took_s = time.monotonic() - began
            done.append(Did(argv=argv, status=ended.status, said=ended.err, took_s=took_s))
        return done

    with ThreadPoolExecutor(PROCESSES) as pool:
        did = [one for some in pool.map(storm, range(PROCESSES)) for one in some]
    statuses = Counter(one.status for one in did)
    slowest = max(did, key=lambda one: one.took_s)
    record_property(
        TOLD,
        f"{len(did)} commands by {PROCESSES}: {dict(statuses)}; the slowest took {slowest.took_s:.1f} s: {slowest.argv}",
    )
    assert [one for one in did if one.status not in allowed(one.argv)] == []
    assert [one for one in did if "Traceback" in one.said] == []
    check_after(host)


def allowed(argv: tuple[str, ...]) -> set[int]:
    """The statuses that are right. A command in a guest takes no lock: another may end its VMM meanwhile."""
    return {0, *REFUSALS} | ({VMM_DIED, GUEST, GUEST_TIMEOUT, TIMED_OUT} if argv[0] == "exec" else set())


def has_kept_its_memory(info: InstanceInfo) -> bool:
    """Whether neither it nor an ancestor has booted since ``web`` was made: a fork of a stopped one begins with a disk alone."""
    booted = info.state in (State.STOPPED, State.FAILED)
    return not booted and all(ancestor.snapshot_id is not None for ancestor in info.lineage)


def check_after(host: Host) -> None:
    """The store is whole, and each guest that is left has the marks of its ancestor."""
    report = host.check_store()
    assert report.whole, report
    assert report.busy == ()
    check_owners(host)
    assert list((host.home / "tmp").iterdir()) == []
    for info in host.list():
        if info.state is State.PAUSED:
            host.resume(info.name)
        elif info.state is State.STANDBY:
            host.restore(info.name)
        elif info.state is not State.RUNNING:
            host.start(info.name)
        check_guest(host, info.name, has_memory=has_kept_its_memory(info))
        host.remove(info.name, force=True)
    for snapshot in host.snapshots():
        for name in snapshot.names:
            host.snapshot_remove(name)
    assert host.snapshots() == []
