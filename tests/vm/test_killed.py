"""SIGKILL between any two steps of any verb, of Ramet and of its VMMs: the next command finds the store whole and tells the
truth, nothing is left that nobody owns, the guest's marks are there, and the verb can be done again.

The steps are those that a verb is seen to make (``killing.py``). In ``make test`` a few of each verb's are tried, with
RAMET_TEST_ALL=1 all are.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from ramet import Host
from ramet.model import State
from ramet.process import wait_until
from tests.artifacts import TOLD
from tests.file_systems import WHOLE
from tests.vm.command_line import INTERNAL_STATUS, CommandLine
from tests.vm.cut_short import MARKS, VERBS, Verb, bring_to, check_guest, check_owners, is_settled, state_of
from tests.vm.guests import sh

SAMPLE = {"ramet": 1, "VMMs": 1}
"""How many steps of each verb ``make test`` tries."""
APART = {"ramet": 1, "VMMs": 4}
"""How far apart those are that are tried with RAMET_TEST_ALL=1."""
REPEATED = 5
"""Every so many-th of them is done again; in ``make test`` the first after a kill of Ramet."""
WITH_MEMORY = (State.RUNNING, State.PAUSED, State.STANDBY)
ENDS_WITHIN_S = 90.0
pytestmark = pytest.mark.parametrize("file_system", ["ext4"], indirect=True)


@pytest.fixture
def command(host: Host) -> CommandLine:
    return CommandLine(host.home)


@pytest.mark.timeout(3600 if WHOLE else 300)
@pytest.mark.parametrize("whom", SAMPLE)
@pytest.mark.parametrize("name", VERBS)
def test_a_verb_that_is_killed_between_any_two_steps(
    host: Host, command: CommandLine, name: str, whom: str, record_property: Callable[[str, object], None]
) -> None:
    verb = VERBS[name]
    prepare(host, command, verb)
    done = cut_short(command, verb)
    assert done.status == 0
    steps = done.steps
    outcomes: Counter[str] = Counter()
    hit = 0
    points = chosen(len(steps), whom)
    for at in points:
        prepare(host, command, verb)
        killed = cut_short(command, verb, at=at, options=["--vmms"] if whom == "VMMs" else [])
        print(f"{name}: {whom} killed before step {at} ({steps[at]}): status {killed.status}")
        hit += killed.struck
        if whom == "ramet":
            assert killed.status in (-signal.SIGKILL, 0), "it may have had fewer steps to make this time, and succeeds"
        outcomes[check_after(host, command, verb, repair=whom == "VMMs")] += 1
        if at % REPEATED == 0 if WHOLE else (whom == "ramet" and at == points[0]):
            prepare(host, command, verb)
            command.text(*verb.argv)
            assert check_after(host, command, verb) == (verb.after or "absent")
    assert hit >= len(points) * 0.8, "most were struck"
    told = ", ".join(f"{state} {count}" for state, count in outcomes.items())
    record_property(TOLD, f"{name}: {len(steps)} steps, {whom} killed before {len(points)} of them: {told}")


def chosen(count: int, whom: str) -> range:
    """Which steps are tried: all, or a few as far apart as can be."""
    apart = APART[whom] if WHOLE else max(count // SAMPLE[whom], 1)
    return range(0 if WHOLE else apart // 2, count, apart)


def prepare(host: Host, command: CommandLine, verb: Verb) -> None:
    """All that the verb starts from, and nothing else."""
    for info in host.list():
        if info.name != "web":
            host.remove(info.name, force=True)
    bring_to(host, verb.before)
    if verb.before is State.RUNNING:
        sh(host, "web", MARKS)
    for snapshot in host.snapshots():
        for name in snapshot.names:
            host.snapshot_remove(name)
    if verb.first is not None:
        command.text(*verb.first)


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
    listed = command.home.parent / "steps"
    struck = command.home.parent / "struck"
    for path in (listed, struck):
        path.unlink(missing_ok=True)
    where = ["--at", str(at)] if at is not None else []
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.vm.killing", *where, *options),
            *("--steps", str(listed), "--struck", str(struck), "--", *verb.argv),
        ],
        cwd=Path(__file__).parents[2],
        env=command.environment() | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        timeout=ENDS_WITHIN_S,
        check=False,
    )
    err = done.stderr.decode()
    assert done.returncode != INTERNAL_STATUS, err
    assert "Traceback" not in err, err
    steps = listed.read_text().splitlines() if listed.exists() else []
    return Interrupted(status=done.returncode, stderr=err, steps=steps, struck=struck.exists())


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
    assert len(forks) in (0, 3), "all forks are made, or none"
    for fork in forks:
        check_fork(host, fork)
        host.remove(fork, force=True)
    for snapshot in host.snapshots():
        assert snapshot.referenced_by, f"nothing refers to {snapshot.id} of {snapshot.instance_name}"
    return became


def recover(host: Host, verb: Verb) -> None:
    """Have it run, by what a user would type, and look into its guest."""
    info = host.get("web")
    has_memory = info.state in WITH_MEMORY and verb.before in WITH_MEMORY
    bring_back(host, info.state)
    host.pause("web")
    host.resume("web")
    check_guest(host, "web", has_marks=has_memory)
    if verb.before is not None:
        assert sh(host, "web", "cat /data/mark") == "disk"
    sh(host, "web", MARKS)  # it may have booted


def bring_back(host: Host, state: State) -> None:
    if state is State.STANDBY:
        host.restore("web")
    elif state in (State.STOPPED, State.FAILED):
        host.start("web")


def check_fork(host: Host, name: str) -> None:
    """One that is there is whole."""
    state = host.get(name).state
    if state in (State.STANDBY, State.FAILED):
        host.restore(name, discard_disk=state is State.FAILED)
    check_guest(host, name)
