"""Ctrl-C, SIGTERM and SIGHUP at any moment of any verb (H47): the state is the one before or the one after, and true; the guest
is not left frozen; no VMM, no file and no snapshot is left that nothing owns; and the next verb works.

A moment is a number of milliseconds after the verb took its instance's lock: from then on it is at work, however long Python took
to start. In ``make test`` a few of each verb are tried, with RAMET_TEST_ALL=1 a fine grid, until the verb is quicker.
"""

from __future__ import annotations

import itertools
import signal
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from ramet import Host
from ramet.errors import RametError
from ramet.model import MIB, InstanceInfo, State
from ramet.process import wait_until
from tests import artifacts
from tests.file_systems import WHOLE
from tests.vm.command_line import CommandLine
from tests.vm.guests import sh
from tests.vm.pseudo_terminal import PseudoTerminal

STARTING_MS = range(0, 200, 10) if WHOLE else (20, 120)
"""Moments after the start of the command: Python is loading, and has ways of its own to end."""
ENDS_WITHIN_S = 60.0
INTERRUPTED = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
AS_IT_EXITS = {-number for number in SIGNALS}
"""The status of a command whose signal came when it had done its work and Python was closing down."""
MARKS = "echo disk >/data/mark; echo ram >/ram/mark; sync"
pytestmark = pytest.mark.parametrize("file_system", ["ext4"], indirect=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """A verb under interruption."""

    argv: tuple[str, ...]
    before: State | None
    """The state of ``web`` that it starts from; None: there is no ``web``."""
    after: State | None
    moments_ms: tuple[int, ...]
    """The sample of ``make test``; at the first it is surely at work."""
    step_ms: int = 10
    """Of the grid."""


VERBS = {
    "create": Verb(
        argv=("create", "web", "--disk", "64M"), before=None, after=State.RUNNING, moments_ms=(0, 90), step_ms=150
    ),
    "rm": Verb(argv=("rm", "web", "--force"), before=State.RUNNING, after=None, moments_ms=(0,), step_ms=3),
    "start": Verb(argv=("start", "web"), before=State.STOPPED, after=State.RUNNING, moments_ms=(300,), step_ms=150),
    "stop": Verb(argv=("stop", "web"), before=State.RUNNING, after=State.STOPPED, moments_ms=(0,), step_ms=100),
    "stop --force": Verb(
        argv=("stop", "web", "--force", "--timeout", "0.1"),
        before=State.RUNNING,
        after=State.STOPPED,
        moments_ms=(0, 120),
        step_ms=40,
    ),
    "standby": Verb(argv=("standby", "web"), before=State.RUNNING, after=State.STANDBY, moments_ms=(0, 60, 120)),
    "restore": Verb(argv=("restore", "web"), before=State.STANDBY, after=State.RUNNING, moments_ms=(0, 50, 100)),
    "fork": Verb(argv=("fork", "web", "-n", "3"), before=State.RUNNING, after=State.RUNNING, moments_ms=(0, 200)),
    "fork --start": Verb(
        argv=("fork", "web", "-n", "3", "--start"),
        before=State.STANDBY,
        after=State.STANDBY,
        moments_ms=(0, 500),
        step_ms=25,
    ),
    "snapshot create": Verb(
        argv=("snapshot", "create", "web", "golden"),
        before=State.RUNNING,
        after=State.RUNNING,
        moments_ms=(0, 80),
    ),
}
SEQUENCES = (
    ("create", "rm"),
    ("stop", "start", "stop --force"),
    ("standby", "restore", "fork --start", "fork", "snapshot create"),
)
"""Each is tried on one ``web``, which is not booted more often than needed."""


def state_of(host: Host, name: str) -> State | None:
    return host.get(name).state if host.exists(name) else None


def bring_to(host: Host, state: State | None) -> None:
    """Make ``web`` what the verb starts from, with its marks."""
    now = state_of(host, "web")
    if state is now:
        return
    if state is None:
        host.remove("web", force=True)
        return
    if now is None:
        host.create("web", disk_bytes=64 * MIB)
        sh(host, "web", MARKS)
        bring_to(host, state)
    elif state is State.RUNNING:
        (host.restore if now is State.STANDBY else host.start)("web")
        if now is State.STOPPED:
            sh(host, "web", MARKS)
    elif state is State.STANDBY:
        bring_to(host, State.RUNNING)
        host.standby("web")
    else:
        bring_to(host, State.RUNNING)
        host.stop("web")


def interrupt(command: CommandLine, argv: tuple[str, ...], moment_ms: int, number: signal.Signals) -> int | None:
    """Run a verb and send it a signal at that moment of its work; its status, or None if it had ended before."""
    locks = command.home / "locks"
    for path in locks.iterdir():
        path.unlink()  # nobody holds one, but a shared one leaves its file
    with command.start(*argv) as process:
        while process.poll() is None and not any(locks.glob("instance-*")):
            pass  # as closely as can be: what follows takes some milliseconds
        status, err = signal_after(process, moment_ms, number)
    print(f"{' '.join(argv)}: {number.name} after {moment_ms} ms: status {status}, {err!r}")
    assert status in {None, 0, INTERRUPTED} | AS_IT_EXITS, err
    if status == INTERRUPTED:
        assert "ramet: error: Interrupted by " in err, err
        assert "Traceback" not in err, err
    return status


def signal_after(process: subprocess.Popen[bytes], moment_ms: int, number: signal.Signals) -> tuple[int | None, str]:
    """Send a signal in so many milliseconds; the status that the process then ends with, or None if it had, and its stderr."""
    try:
        process.wait(timeout=moment_ms / 1000)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
    else:
        return None, ""
    try:
        _, err = process.communicate(timeout=ENDS_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, err.decode()


@pytest.fixture
def command(host: Host) -> CommandLine:
    return CommandLine(host.home)


@pytest.mark.timeout(1800 if WHOLE else 300)
@pytest.mark.parametrize("names", SEQUENCES, ids=", ".join)
def test_a_verb_interrupted_at_any_moment(host: Host, command: CommandLine, names: tuple[str, ...]) -> None:
    for name in names:
        verb = VERBS[name]
        moments: Iterable[int] = itertools.count(0, verb.step_ms) if WHOLE else verb.moments_ms
        statuses = []
        for moment_ms, number in zip(moments, itertools.cycle(SIGNALS), strict=False):
            bring_to(host, verb.before)
            if verb.before is State.RUNNING:
                sh(host, "web", MARKS)  # it may be what the verb before this one has left
            statuses.append(interrupt(command, verb.argv, moment_ms, number))
            check_after(host, command, verb)
            if statuses[-1] is None:
                break  # it was quicker, and will be from here on
        assert INTERRUPTED in statuses, "no signal met the verb at work"


def test_a_command_interrupted_before_it_is_at_work(host: Host, command: CommandLine) -> None:
    for moment_ms, number in zip(STARTING_MS, itertools.cycle(SIGNALS), strict=False):
        with command.start(*VERBS["create"].argv) as process:
            status, err = signal_after(process, moment_ms, number)
        assert status not in (None, 0), err
        check_after(host, command, VERBS["create"])


def check_after(host: Host, command: CommandLine, verb: Verb) -> None:
    """All that is promised, with the next command as a user would type it."""
    assert [path.name for path in (host.home / "tmp").iterdir()] == [], "before any command could tidy up"
    if verb.argv[0] == "stop":
        wait_until(lambda: is_settled(host), 30, what="the guest to go down, or to run on")
    listed = {info["name"]: info["state"] for info in command.json("ls")}
    state = state_of(host, "web")
    assert listed.get("web") == state
    assert state in (verb.before, verb.after), f"{verb.argv}: {state}"
    forks = [name for name in listed if name != "web"]
    assert len(forks) in (0, 3), forks
    check_owners(host)
    if state is State.RUNNING:
        check_guest(host, "web", has_marks=verb.before in (State.RUNNING, State.STANDBY))
    for fork in forks:
        if listed[fork] == "running":
            check_guest(host, fork)
        host.remove(fork, force=True)
    if state is not None:
        use_once_more(host, command, verb)
    for snapshot in host.snapshots():
        assert snapshot.referenced_by, f"nothing refers to {snapshot.id} of {snapshot.instance_name}"
        for name in snapshot.names:
            host.snapshot_remove(name)


def use_once_more(host: Host, command: CommandLine, verb: Verb) -> None:
    """The next command of the user: the same verb, or a pause where that would make something twice."""
    if verb.argv[0] in ("fork", "snapshot", "create") or verb.after is None:
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


def check_guest(host: Host, name: str, *, has_marks: bool = True) -> None:
    """It answers, and its workload and its disk are not frozen."""
    script = "cat /sys/fs/cgroup/workload/cgroup.freeze; date >/data/written; sync"
    assert sh(host, name, script) == "0"
    if has_marks:
        assert sh(host, name, "cat /ram/mark /data/mark") == "ram\ndisk"


def is_settled(host: Host) -> bool:
    """Whether a guest that may have been told to shut down has done so, or answers and is not going down."""
    if host.get("web").state is State.STOPPED:
        return True
    try:
        host.ping("web")
        return sh(host, "web", "pidof poweroff rcK || echo no") == "no"
    except (RametError, AssertionError):
        return False


def test_a_verb_on_several_stops_at_the_interruption(host: Host, command: CommandLine, running: InstanceInfo) -> None:
    """What was done stays done, the one at work is whole, and the rest is not begun."""
    host.fork("web", ["b", "c"], start=True)
    with command.start("standby", "web", "b", "c") as process:
        wait_until(lambda: host.get("web").state is State.STANDBY, 30, what="the first to sleep")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=ENDS_WITHIN_S)
    assert process.returncode == INTERRUPTED, (out, err)
    assert err.count(b"ramet: error: ") == 1
    assert host.get("c").state is State.RUNNING
    assert host.get("b").state in (State.RUNNING, State.STANDBY)
    check_owners(host)
    assert sh(host, "c", "cat /ram/mark") == "ram-source"


def test_a_terminal_that_closes_interrupts_and_takes_no_vm_with_it(
    host: Host, command: CommandLine, running: InstanceInfo
) -> None:
    sh(host, "web", MARKS)
    with PseudoTerminal(command, "exec", "-t", "web", "sh", "-c", "echo up; exec sleep 1000") as terminal:
        terminal.expect(b"up")
        terminal.hang_up()
    wait_until(lambda: sh(host, "web", "pidof sleep || echo ended") == "ended", 10, what="the command to end")
    with PseudoTerminal(command, "fork", "web", "-n", "20", "--start") as terminal:
        wait_until(lambda: len(host.list()) > 1, 30, what="the first fork")
        terminal.hang_up()
    assert [info.name for info in host.list()] == ["web"], "all forks are made, or none"
    check_owners(host)
    check_guest(host, "web")


def test_an_image_build_that_is_interrupted_leaves_nothing(store_home: Path, tmp_path: Path) -> None:
    command = CommandLine(tmp_path / "home")
    for moment_ms, number in zip((400, 1500, 2500) if WHOLE else (1000,), SIGNALS, strict=False):
        with command.start("image", "build") as process:
            status, err = signal_after(process, moment_ms, number)
        assert status == INTERRUPTED, err
        assert "ramet: error: Interrupted by " in err, err
        assert "Traceback" not in err, err
        left = [path for path in (tmp_path / "home" / "images").glob("*") if path.name != "tags"]
        assert left == []
        assert command.json("ls") == []
    if WHOLE:
        assert command.run("image", "build").status == 0
