"""Ctrl-C, SIGTERM and SIGHUP at any moment of any verb (H47): the state is the one before or the one after, and true; the guest
is not left frozen; no VMM, no file and no snapshot is left that nothing owns; and the next verb works.

A moment is a number of milliseconds after the verb took its instance's lock: from then on it is at work, however long Python took
to start. In ``make test`` a few of each verb are tried, with RAMET_TEST_ALL=1 a fine grid, until the verb is quicker.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from ramet import Host
from ramet.model import InstanceInfo, State
from ramet.process import wait_until
from ramet.store.locks import locked
from tests.file_systems import WHOLE
from tests.kept import Kept
from tests.vm.command_line import CommandLine
from tests.vm.cut_short import (
    INTERRUPTED,
    INTERRUPTING,
    MARKS,
    bring_to,
    check_guest,
    check_interrupted,
    check_owners,
    is_settled,
    state_of,
    use_once_more,
)
from tests.vm.guests import sh
from tests.vm.pseudo_terminal import PseudoTerminal
from tests.vm.verbs import VERBS, Verb

STARTING_MS = range(0, 200, 10) if WHOLE else (20, 120)
"""Moments after the start of the command: Python is loading, and has ways of its own to end."""
ENDS_WITHIN_S = 120.0
MORE_TRIES = 5
"""Of the first moment, if no signal has met the verb at work."""
pytestmark = pytest.mark.parametrize("file_system", ["ext4"], indirect=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """When a verb is interrupted."""

    sample_ms: tuple[int, ...]
    """In ``make test``; at the first it is surely at work."""
    step_ms: int = 10
    """Of the grid."""


MOMENTS = {
    "create": Moments(sample_ms=(0, 90), step_ms=150),
    "rm": Moments(sample_ms=(0,), step_ms=3),
    "start": Moments(sample_ms=(300,), step_ms=150),
    "stop": Moments(sample_ms=(0,), step_ms=100),
    "stop --force": Moments(sample_ms=(0, 120), step_ms=40),
    "standby": Moments(sample_ms=(0, 60, 120)),
    "restore": Moments(sample_ms=(0, 50, 100)),
    "fork": Moments(sample_ms=(0, 200)),
    "fork --start": Moments(sample_ms=(0, 500), step_ms=25),
    "snapshot create": Moments(sample_ms=(0, 80)),
}
COPYING = Moments(sample_ms=(0, 10))
SEQUENCES = (
    ("create", "rm"),
    ("stop", "start", "stop --force"),
    ("standby", "restore", "fork --start", "fork", "snapshot create"),
)
"""Each is tried on one ``web``, which is not booted more often than needed."""


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
    check_interrupted(status, err)
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


def moments_ms(grid: Moments, statuses: Sequence[int | None]) -> Iterator[int]:
    """When a verb is interrupted, until it is quicker; the first moment again, if none has met it at work. ``statuses``: of those
    that there were.
    """
    for moment_ms in itertools.count(0, grid.step_ms) if WHOLE else grid.sample_ms:
        yield moment_ms
        if statuses[-1] is None:
            break  # it was quicker, and will be from here on
    for _ in range(MORE_TRIES):
        if INTERRUPTED in statuses:
            return
        yield grid.sample_ms[0]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("names", SEQUENCES, ids=", ".join)
def test_a_verb_interrupted_at_any_moment(host: Host, command: CommandLine, kept: Kept, names: tuple[str, ...]) -> None:
    for name in names:
        verb = VERBS[name]
        statuses: list[int | None] = []
        for moment_ms, number in zip(moments_ms(MOMENTS[name], statuses), itertools.cycle(INTERRUPTING), strict=False):
            bring_to(host, kept, verb.before)
            if verb.before is State.RUNNING:
                sh(host, "web", MARKS)  # it may be what the verb before this one has left
            statuses.append(interrupt(command, verb.argv, moment_ms, number))
            check_after(host, command, verb)
        assert INTERRUPTED in statuses, "no signal met the verb at work"


def test_a_command_interrupted_before_it_is_at_work(host: Host, command: CommandLine) -> None:
    for moment_ms, number in zip(STARTING_MS, itertools.cycle(INTERRUPTING), strict=False):
        with command.start(*VERBS["create"].argv) as process:
            status, err = signal_after(process, moment_ms, number)
        assert status not in (None, 0), err
        check_after(host, command, VERBS["create"])


def check_after(host: Host, command: CommandLine, verb: Verb) -> None:
    """All that is promised, with the next command as a user would type it."""
    assert [path.name for path in (host.home / "tmp").iterdir()] == [], "before any command could tidy up"
    if verb.argv[0] == "stop":
        wait_until(lambda: is_settled(host), 120, what="the guest to go down, or to run on")
    listed = {info["name"]: info["state"] for info in command.json("ls")}
    state = state_of(host, "web")
    assert listed.get("web") == state
    assert state in (verb.before, verb.after), f"{verb.argv}: {state}"
    forks = [name for name in listed if name != "web"]
    assert len(forks) in (0, verb.forks), forks
    check_owners(host)
    if state is State.RUNNING:
        has_memory = verb.before in (State.RUNNING, State.STANDBY)
        check_guest(host, "web", has_memory=has_memory, has_disk=verb.before is not None)
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


def test_a_verb_on_several_stops_at_the_interruption(host: Host, command: CommandLine, running: InstanceInfo) -> None:
    """What was done stays done, the one at work is whole, and the rest is not begun.

    Another command is at work on ``c``: however quick the verb is, it does not come to its end before the signal, and if it went
    on after it, it would have one more error to tell.
    """
    _, c = host.fork("web", ["b", "c"], start=True).instances
    with (
        locked(host.home / "locks", f"instance-{c.id}"),
        command.start("standby", "web", "b", "c") as process,
    ):
        wait_until(lambda: host.get("web").state is State.STANDBY, 120, what="the first to sleep")
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
    wait_until(lambda: sh(host, "web", "pidof sleep || echo ended") == "ended", 120, what="the command to end")
    with PseudoTerminal(command, "fork", "web", "-n", "20", "--start") as terminal:
        wait_until(lambda: len(host.list()) > 1, 120, what="the first fork")
        terminal.hang_up()
    assert [info.name for info in host.list()] == ["web"], "all forks are made, or none"
    check_owners(host)
    check_guest(host, "web")


@pytest.mark.timeout(1800)
def test_a_copy_that_is_interrupted_is_there_whole_or_not_at_all(
    host: Host, command: CommandLine, running: InstanceInfo, tmp_path: Path
) -> None:
    """At moments after its first byte."""
    content = os.urandom(16 << 20)
    here, there = tmp_path / "here", tmp_path / "there"
    here.write_bytes(content)
    there.mkdir()
    command.text("cp", str(here), "web:/ram/here")
    sh(host, "web", "mkdir /ram/copied")
    copied = str(["here", hashlib.sha256(content).hexdigest()])
    for argv in (("cp", str(here), "web:/ram/copied/"), ("cp", "web:/ram/here", str(there / "here"))):
        statuses: list[int | None] = []
        for moment_ms, number in zip(moments_ms(COPYING, statuses), itertools.cycle(INTERRUPTING), strict=False):
            (there / "here").unlink(missing_ok=True)
            sh(host, "web", "rm -rf /ram/copied/*")
            with command.start(*argv) as process:
                while process.poll() is None and not is_copying(process.pid, here, there):
                    pass
                status, err = signal_after(process, moment_ms, number)
            print(f"{argv}: {number.name} after {moment_ms} ms: status {status}, {err!r}")
            check_interrupted(status, err)
            statuses.append(status)
            is_inward = argv[1] == str(here)
            look = partial(in_the_guest, host) if is_inward else partial(in_the_directory, there)
            allowed = {copied} if status in (None, 0) else {copied, "[]"}
            wait_until(lambda: look() in allowed, 30 if is_inward else 0, what=f"{allowed}")  # noqa: B023
        assert INTERRUPTED in statuses, "no signal met it at work"


def is_copying(pid: int, here: Path, there: Path) -> bool:
    """Whether a copy has read of the file, or written of its own."""
    with suppress(OSError):  # it has ended, or closed one meanwhile
        for link in Path(f"/proc/{pid}/fd").iterdir():
            file = link.readlink()
            position = (Path(f"/proc/{pid}/fdinfo") / link.name).read_text().split()[1]
            if (file == here or file.parent == there) and position != "0":
                return True
    return False


def in_the_guest(host: Host) -> str:
    """What is in its directory, and the digest of what was copied, if that is there. The guest takes half a file back itself."""
    said = sh(host, "web", "cd /ram/copied; ls -A; sha256sum here 2>/dev/null || true").split()
    return str(said[:2])


def in_the_directory(there: Path) -> str:
    return str(
        [text for path in there.iterdir() for text in (path.name, hashlib.sha256(path.read_bytes()).hexdigest())]
    )


def test_an_image_build_that_is_interrupted_leaves_nothing(store_home: Path, tmp_path: Path) -> None:
    command = CommandLine(tmp_path / "home")
    for moment_ms, number in zip((400, 1500, 2500) if WHOLE else (1000,), INTERRUPTING, strict=False):
        with command.start("image", "build") as process:
            wait_until(lambda: (tmp_path / "home" / "images").is_dir(), 120, what="the build to be at work")
            status, err = signal_after(process, moment_ms, number)
        assert status == INTERRUPTED, err
        assert "ramet: error: Interrupted by " in err, err
        assert "Traceback" not in err, err
        left = [path for path in (tmp_path / "home" / "images").glob("*") if path.name != "tags"]
        assert left == []
        assert command.json("ls") == []
    if WHOLE:
        assert command.run("image", "build").status == 0
