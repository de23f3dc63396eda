"""The verbs that are cut short: what each starts from and ends in, in which ways it is cut short, and at which of its steps."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass

from ramet import Host
from ramet.linux.mounts import file_system_of
from ramet.model import State
from tests.file_systems import WHOLE

RAMET, VMMS, DISK, SIGNALS = "ramet", "VMMs", "disk", "signals"
"""What is cut short: the command is killed, the VMMs are, the disk fails, or the command is interrupted."""
ALL, NOTHING = frozenset({RAMET, VMMS, DISK, SIGNALS}), frozenset[str]()
KILLED = frozenset({RAMET})
EVERY_STEP = os.environ.get("RAMET_TEST_STEPS") == "all"
APART = {RAMET: 3, VMMS: 6, DISK: 6, SIGNALS: 6}
"""How far apart those steps are that are tried with RAMET_TEST_ALL=1."""
APART_ON_XFS = 5
"""Of those, where files are reflinked, one of so many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """A verb that is cut short."""

    argv: tuple[str, ...]
    before: State | None
    """The state of ``web`` that it starts from; None: there is no ``web``."""
    after: State | None
    first: tuple[tuple[str, ...], ...] = ()
    """What else there must be: commands that make it."""
    forks: int = 0
    """How many instances it makes besides."""
    claims: tuple[str, ...] = ()
    """Names that all mean forks afterwards or, if it was killed, none: those that it had claimed are removed."""
    sample: frozenset[str] = ALL
    """What ``make test`` tries of it; with RAMET_TEST_ALL=1 all is tried. Of near relatives one is enough."""


GOLDEN = ("snapshot", "create", "web", "golden")
POOL = ("pool", "snapshot:golden", "--size", "2")
TWO = ("claimed", "claimed-too")


def fork(source: str, before: State, *options: str, count: int = 2, sample: frozenset[str] = NOTHING) -> Verb:
    """A fork, which leaves its source as it was."""
    return Verb(
        argv=("fork", source, "-n", str(count), *options),
        before=before,
        after=before,
        first=(GOLDEN,) if source.startswith("snapshot:") else (),
        forks=count,
        sample=sample,
    )


VERBS = {
    "create": Verb(argv=("create", "web", "--disk", "64M"), before=None, after=State.RUNNING),
    "rm": Verb(argv=("rm", "web", "--force"), before=State.RUNNING, after=None),
    "start": Verb(argv=("start", "web"), before=State.STOPPED, after=State.RUNNING),
    "stop": Verb(argv=("stop", "web"), before=State.RUNNING, after=State.STOPPED),
    "stop --force": Verb(
        argv=("stop", "web", "--force", "--timeout", "0.1"), before=State.RUNNING, after=State.STOPPED
    ),
    "standby": Verb(argv=("standby", "web"), before=State.RUNNING, after=State.STANDBY),
    "pause": Verb(argv=("pause", "web"), before=State.RUNNING, after=State.PAUSED),
    "resume": Verb(argv=("resume", "web"), before=State.PAUSED, after=State.RUNNING),
    "restore": Verb(argv=("restore", "web"), before=State.STANDBY, after=State.RUNNING),
    "restore --verified": Verb(
        argv=("restore", "web", "--verified"), before=State.STANDBY, after=State.RUNNING, sample=KILLED
    ),
    "fork": fork("web", State.RUNNING, sample=ALL),
    "fork --start": fork("web", State.STANDBY, "--start", sample=ALL),
    "fork that shares": fork("web", State.STANDBY, "--memory-policy", "share", "--start"),
    "fork of a running one that shares": fork("web", State.RUNNING, "--memory-policy", "share"),
    "fork one": fork("web", State.RUNNING, count=1),
    "fork of a paused one": fork("web", State.PAUSED),
    "fork one of a paused one": fork("web", State.PAUSED, count=1, sample=KILLED),
    "fork of a sleeping one": fork("web", State.STANDBY),
    "fork one of a sleeping one": fork("web", State.STANDBY, count=1),
    "fork of a stopped one": fork("web", State.STOPPED, sample=KILLED),
    "fork one of a stopped one": fork("web", State.STOPPED, count=1),
    "fork of a snapshot": fork("snapshot:golden", State.RUNNING),
    "fork one of a snapshot": fork("snapshot:golden", State.RUNNING, count=1, sample=KILLED),
    "pool": Verb(argv=POOL, before=State.RUNNING, after=State.RUNNING, first=(GOLDEN,), forks=2, sample=KILLED),
    "fork --from-pool": Verb(
        argv=("fork", "snapshot:golden", "claimed", "--from-pool"),
        before=State.RUNNING,
        after=State.RUNNING,
        first=(GOLDEN, POOL),
        forks=2,
        sample=ALL,
    ),
    "fork two --from-pool": Verb(
        argv=("fork", "snapshot:golden", *TWO, "--from-pool"),
        before=State.RUNNING,
        after=State.RUNNING,
        first=(GOLDEN, POOL),
        forks=2,
        claims=TWO,
        sample=KILLED,
    ),
    "snapshot create": Verb(argv=GOLDEN, before=State.RUNNING, after=State.RUNNING),
    "rollback": Verb(
        argv=("restore", "web", "--snapshot", "golden", "--discard-memory", "--discard-disk"),
        before=State.RUNNING,
        after=State.RUNNING,
        first=(GOLDEN,),
    ),
    "snapshot rm": Verb(argv=("snapshot", "rm", "golden"), before=State.RUNNING, after=State.RUNNING, first=(GOLDEN,)),
}
"""Those of images are in ``test_killed_images.py``."""


def tried(name: str) -> list[str]:
    """How a verb is cut short."""
    verb = VERBS[name]
    return [
        kind
        for kind in (RAMET, VMMS, DISK, SIGNALS)
        if (WHOLE or kind in verb.sample) and not (kind == VMMS and has_no_vmm(verb))
    ]


def has_no_vmm(verb: Verb) -> bool:
    """Whether there is none while it works."""
    at_rest = (State.STANDBY, State.STOPPED)
    return verb.before in at_rest and verb.after in at_rest and "--start" not in verb.argv


def chosen(host: Host, count: int, *, how: str) -> range:
    """Which of ``count`` steps are tried: the middle one; with RAMET_TEST_ALL=1 evenly spread ones, others in each run; with
    RAMET_TEST_STEPS=all besides, all.
    """
    if not WHOLE:
        return range(count // 2, count // 2 + 1)
    apart = APART[how]
    if file_system_of(host.home) == "xfs":
        apart *= APART_ON_XFS
    if EVERY_STEP:
        apart = 1
    return range(random.randrange(min(apart, max(count, 1))), count, apart)


def spread(count: int, sample: int) -> range:
    """Which of ``count`` steps are tried where a step takes long: some ``sample`` of them, evenly."""
    apart = max(count // sample, 1)
    return range(apart * 3 // 4, count, apart)
