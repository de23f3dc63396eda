"""Verbs (``verbs.py``) that are cut short at a step, by a signal, by SIGKILL or by a disk that fails, and what must be true
afterwards.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ramet import Host
from ramet.errors import RametError
from ramet.model import State
from ramet.process import wait_until
from tests import artifacts
from tests.file_systems import WHOLE
from tests.kept import Kept
from tests.vm import preloaded
from tests.vm.command_line import INTERNAL_STATUS, CommandLine
from tests.vm.guests import sh
from tests.vm.verbs import GOLDEN, POOL, RAMET, VERBS, VMMS, Verb

MARKS = "echo disk >/data/mark; echo ram >/ram/mark; sync"
WITH_MEMORY = (State.RUNNING, State.PAUSED, State.STANDBY)
ERRORS = ("ENOSPC", "EIO")
INTERRUPTING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = 130
AS_IT_EXITS = {-number for number in INTERRUPTING}
"""The status of a command whose signal came when it had done its work and Python was closing down."""
ENDS_WITHIN_S = 300.0
REPEATED = 5
"""After every so many-th kill the verb is done again, the first included; in ``make test`` after those of Ramet alone."""


def state_of(host: Host, name: str) -> State | None:
    return host.get(name).state if host.exists(name) else None


def bring_to(host: Host, kept: Kept, state: State | None) -> None:
    """Make ``web`` what the verb starts from, with its marks. Nothing boots: one that has no memory any more, or that has booted
    and so has no snapshot (a verb then has fewer steps), is taken away, and the one that is ``kept`` put in its place.
    """
    now = state_of(host, "web")
    has_booted = now in WITH_MEMORY and host.get("web").snapshot is None
    if has_booted or (now is not state and (now in (State.STOPPED, State.FAILED) or state is None)):
        host.remove("web", force=True)
        now = None
    if state is now:
        return
    if now is None:
        kept.put_into(host)
        host.restore("web")
        sh(host, "web", MARKS)
    elif now is State.STANDBY:
        host.restore("web")
    elif now is State.PAUSED:
        host.resume("web")
    if state is State.PAUSED:
        host.pause("web")
    elif state in (State.STANDBY, State.STOPPED):
        host.standby("web")
    if state is State.STOPPED:
        host.stop("web", discard_memory=True)


def use_once_more(host: Host, command: CommandLine, verb: Verb) -> None:
    """The next command of the user: the same verb, or a pause where that would make something twice."""
    if verb.argv[0] in ("fork", "pool", "snapshot", "create") or verb.after is None:
        if state_of(host, "web") is State.RUNNING:
            command.text("pause", "web")
            command.text("resume", "web")
        return
    command.text(*verb.argv)
    assert state_of(host, "web") is verb.after


def check_owners(host: Host) -> None:
    """Every name and every VMM belongs to an instance, and nothing is left of the work."""
    infos = host.list()
    names = {path.name: path.read_text().strip() for path in (host.home / "names" / "instances").iterdir()}
    assert names == {info.name: info.id for info in infos}
    assert artifacts.vmm_pids(f"{host.home}/") == {info.pid for info in infos if info.pid is not None}


def check_guest(host: Host, name: str, *, has_memory: bool = True, has_disk: bool = True) -> None:
    """It answers, its workload and its disk are not frozen, and its marks are there: in memory, on disk."""
    marks = [f"/{place}/mark" for place, there in (("ram", has_memory), ("data", has_disk)) if there]
    script = f"cat /sys/fs/cgroup/workload/cgroup.freeze {' '.join(marks)}; date >/data/written; {MARKS}"
    expected = ["0", *(["ram"] if has_memory else []), *(["disk"] if has_disk else [])]
    assert sh(host, name, script).split() == expected


def is_settled(host: Host) -> bool:
    """Whether a guest that may have been told to shut down has done so, or answers and is not going down."""
    if host.get("web").state in (State.STOPPED, State.FAILED):
        return True
    try:
        host.ping("web")
        return sh(host, "web", "pidof poweroff rcK || echo no") == "no"
    except (RametError, AssertionError):
        return False


def prepare(host: Host, command: CommandLine, kept: Kept, verb: Verb) -> None:
    """All that the verb starts from, and nothing else."""
    for info in host.list():
        if info.name != "web":
            host.remove(info.name, force=True)
    bring_to(host, kept, verb.before)
    for snapshot in host.snapshots():
        for name in snapshot.names:
            host.snapshot_remove(name)
    for argv in verb.first:
        command.text(*argv)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interrupted:
    """What came of a verb that was to be cut short."""

    status: int
    stderr: str
    steps: list[str]
    """Those that it made, if it came to its end."""
    struck: bool


def cut_short(command: CommandLine, verb: Verb, *, at: int | None = None, options: Sequence[str] = ()) -> Interrupted:
    """Let the verb come to a step, and what ``options`` say happen there."""
    where = ["--at", str(at)] if at is not None else []
    with tempfile.TemporaryDirectory(prefix="ramet-steps-") as place:
        listed, struck = Path(place) / "steps", Path(place) / "struck"
        done = preloaded.run(
            "killing",
            [*where, *options, "--steps", str(listed), "--struck", str(struck), "--", *verb.argv],
            env=command.environment(),
            timeout_s=ENDS_WITHIN_S,
        )
        steps = listed.read_text().splitlines() if listed.exists() else []
        was_struck = struck.exists()
    err = done.stderr.decode()
    assert done.returncode != INTERNAL_STATUS, err
    assert "Traceback" not in err, err
    return Interrupted(status=done.returncode, stderr=err, steps=steps, struck=was_struck)


def check_after(
    host: Host,
    command: CommandLine,
    verb: Verb,
    *,
    then: Callable[[], object] = lambda: None,
    repair: bool = False,
) -> str:
    """All that is promised, with what the next command finds, and ``then`` once ``web`` runs; returns what had become of it.
    ``repair``: what the next verb on an instance would do is done first: to take away a mark, to note that its VMM has ended.
    """
    if verb.argv[0] == "stop":
        wait_until(lambda: is_settled(host), 30, what="the guest to go down, or to run on")
    listed = {info["name"]: info for info in command.json("ls")}
    assert list((host.home / "tmp").iterdir()) == [], "the next command has tidied up"
    assert list((host.home / "locks").glob("chore-*")) == [], "and has done what there was to do"
    state = state_of(host, "web")
    assert (listed["web"]["state"] if "web" in listed else None) == state
    failure = host.get("web").failure if state is not None else None
    became = f"{state.value if state else 'absent'}{f' ({failure.value})' if failure else ''}"
    if state is not None:
        recover(host, verb)
        then()
    check_owners(host)
    if repair:
        host.check_store(repair=True)
    report = host.check_store()
    assert report.whole, report
    assert [path for path in host.home.rglob(".*") if path.is_file()] == [], "a temporary file is left"
    forks = [name for name in listed if name != "web"]
    if verb.claims:
        assert {*verb.claims} <= {*forks} or {*verb.claims}.isdisjoint(forks), "all are claimed, or none"
        assert len(forks) <= verb.forks
    else:
        assert len(forks) == verb.forks or not (forks or POOL in verb.first), (
            "all forks are made, or none; none is lost"
        )
    for one in forks:
        check_fork(host, one, boots=one == forks[0])
        host.remove(one, force=True)
    for snapshot in host.snapshots():
        assert snapshot.referenced_by, f"nothing refers to {snapshot.id} of {snapshot.instance_name}"
    return became


def sleep_and_wake(host: Host, verb: Verb) -> None:
    """No page that the guest has dirtied is missing from the next snapshot."""
    if verb.before not in WITH_MEMORY:
        return
    host.standby("web")
    host.restore("web")
    check_guest(host, "web")


def steps_of(host: Host, command: CommandLine, kept: Kept, verb: Verb) -> list[str]:
    """What the verb is seen to do, from its start to its end."""
    prepare(host, command, kept, verb)
    done = cut_short(command, verb)
    assert done.status == 0, done
    return done.steps


def kill_before(
    host: Host,
    command: CommandLine,
    kept: Kept,
    name: str,
    whom: str,
    steps: Sequence[str],
    points: Sequence[int],
    *,
    then: Callable[[Host, Verb], object] = lambda _host, _verb: None,
) -> str:
    """Kill a verb, or the VMMs, before each of those of its steps, and see what comes of it: told."""
    verb = VERBS[name]
    outcomes: Counter[str] = Counter()
    hit = 0
    for count, at in enumerate(points):
        prepare(host, command, kept, verb)
        killed = cut_short(command, verb, at=at, options=["--vmms"] if whom == VMMS else [])
        print(f"{name}: {whom} killed before step {at} ({steps[at]}): status {killed.status}")
        hit += killed.struck
        if whom == RAMET:
            assert killed.status in (-signal.SIGKILL, 0), (
                f"it may have had fewer steps this time, and succeeds: {killed}"
            )
        became = check_after(host, command, verb, then=lambda: then(host, verb), repair=whom == VMMS)
        outcomes[became] += 1
        if count % REPEATED == 0 and (WHOLE or whom == RAMET):
            prepare(host, command, kept, verb)
            command.text(*verb.argv)
            assert check_after(host, command, verb) == (verb.after or "absent")
    assert hit >= len(points) * 0.8, "most were struck"
    return f"{name}: {len(steps)} steps, {whom} killed before {len(points)} of them: {told(outcomes)}"


def fail_disk_at(
    host: Host, command: CommandLine, kept: Kept, name: str, steps: Sequence[str], points: Sequence[int]
) -> str:
    """Let the disk fail at each of those of a verb's writing steps (``killing.writing``), and see what comes of it: told."""
    verb = VERBS[name]
    outcomes: Counter[str] = Counter()
    hit = 0
    for count, at in enumerate(points):
        error = ERRORS[count % 2]
        prepare(host, command, kept, verb)
        failed = cut_short(command, verb, at=at, options=["--errno", error])
        print(f"{name}: {error} at step {at} ({steps[at]}): status {failed.status}: {failed.stderr.strip()}")
        hit += failed.struck
        if failed.status != 0:
            check_told(failed, error)
        became = check_after(host, command, verb, then=lambda: sleep_and_wake(host, verb), repair=True)
        expected = verb.after if failed.status == 0 else verb.before
        assert became == (expected.value if expected else "absent") or is_half_way(verb, became), became
        outcomes[f"{'done all the same' if failed.status == 0 else 'not done'}, {became}"] += 1
    assert hit >= len(points) * 0.8, "most were struck"
    return f"{name}: {len(steps)} writing steps, the disk failed at {len(points)} of them: {told(outcomes)}"


def interrupt_before(
    host: Host, command: CommandLine, kept: Kept, name: str, steps: Sequence[str], points: Sequence[int]
) -> str:
    """Interrupt a verb before each of those of its steps, and see what comes of it: told. A step of another thread may be made
    before the main one, which is interrupted, has noticed.
    """
    verb = VERBS[name]
    outcomes: Counter[str] = Counter()
    hit = 0
    for at in points:
        number = random.choice(INTERRUPTING)
        prepare(host, command, kept, verb)
        ended = cut_short(command, verb, at=at, options=["--signal", number.name])
        print(f"{name}: {number.name} before step {at} ({steps[at]}): status {ended.status}: {ended.stderr.strip()}")
        hit += ended.struck
        assert ended.status in (0, INTERRUPTED), ended
        check_interrupted(ended.status, ended.stderr)
        assert list((host.home / "tmp").iterdir()) == [], "before any command could tidy up"
        if ended.status == 0:
            check_done(host, verb)
        became = check_after(host, command, verb)
        expected = {verb.after} if ended.status == 0 else {verb.before, verb.after}
        assert became in {state.value if state else "absent" for state in expected} or is_half_way(verb, became), became
        outcomes[f"{'interrupted' if ended.status else 'done all the same'}, {became}"] += 1
    assert hit >= len(points) * 0.8, "most were struck"
    assert any(outcome.startswith("interrupted") for outcome in outcomes), (
        "no signal had an effect: are they ignored here?"
    )
    return f"{name}: {len(steps)} steps, interrupted before {len(points)} of them: {told(outcomes)}"


def check_done(host: Host, verb: Verb) -> None:
    """A verb that says that it has come to its end has made what it was to make."""
    assert len([info for info in host.list() if info.name != "web"]) == verb.forks
    golden = [name for snapshot in host.snapshots() for name in snapshot.names]
    assert (golden == ["golden"]) == (
        verb.argv == GOLDEN or (GOLDEN in verb.first and verb.argv[:2] != ("snapshot", "rm"))
    )


def check_interrupted(status: int | None, stderr: str) -> None:
    """It says so, in our words; or it had done its work."""
    assert status in {None, 0, INTERRUPTED} | AS_IT_EXITS, stderr
    if status == INTERRUPTED:
        assert "ramet: error: Interrupted by " in stderr, stderr
        assert "Traceback" not in stderr, stderr


def told(outcomes: Counter[str]) -> str:
    return ", ".join(f"{state} {times}" for state, times in outcomes.items())


def is_half_way(verb: Verb, became: str) -> bool:
    """What a verb cannot take back: a guest that was told to go down, a live VM that was given up, a removal, which goes on."""
    return (verb.argv[0] in ("stop", "rm") or "--discard-disk" in verb.argv) and became in ("stopped", "absent")


def recover(host: Host, verb: Verb) -> None:
    """Have it run, by what a user would type, and look into its guest. It has its marks afterwards, even if it has booted."""
    info = host.get("web")
    has_memory = info.state in WITH_MEMORY and verb.before in WITH_MEMORY
    bring_back(host, info.state)
    host.pause("web")
    host.resume("web")
    check_guest(host, "web", has_memory=has_memory, has_disk=verb.before is not None)


def bring_back(host: Host, state: State) -> None:
    if state is State.STANDBY:
        host.restore("web")
    elif state in (State.STOPPED, State.FAILED):
        host.start("web")


def check_fork(host: Host, name: str, *, boots: bool) -> None:
    """One that is there is whole. ``boots``: look into one that has a disk alone, which takes seconds."""
    state = host.get(name).state
    if state is State.STOPPED:
        if boots:
            host.start(name)
            check_guest(host, name, has_memory=False)
        return
    if state is State.PARKED:
        (claimed,) = host.fork("snapshot:golden", ["checked"], from_pool=True).instances
        assert claimed.id == name, "the oldest is claimed first"
    if state in (State.STANDBY, State.FAILED):
        host.restore(name, discard_disk=state is State.FAILED)
    check_guest(host, name)


def check_told(failed: Interrupted, error: str) -> None:
    """The error is one of ours, and says what the kernel said."""
    assert failed.stderr.count("ramet: error: ") == 1, failed.stderr
    what = os.strerror(getattr(errno, error))
    assert what in failed.stderr or "no room" in failed.stderr.lower(), failed.stderr
