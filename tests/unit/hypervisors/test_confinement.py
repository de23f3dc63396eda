"""Confinement: a hostile program that is started as a VMM is reaches nothing but what is its instance's own (H70)."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from ramet import process
from ramet.errors import ConfigError
from ramet.hypervisors import confinement
from ramet.hypervisors.base import BootFiles, Hardware, LaunchSpec
from ramet.linux import landlock, procfs
from ramet.model import Accelerator
from tests.capabilities import requires

PYTHON = str(Path(sys.executable).resolve())
PROGRAM = Path(__file__).with_name("hostile.py")
OWN = {"own: make", "own: write", "own: truncate", "own: rename", "own: remove", "own: log", "own: listen"}
READ = {"own: read the image", "own: read the snapshot"}
NEVER_HANDLED = {
    "victim: mode",
    "victim: times",
    "victim: attributes",
    "process: its socket",
    "process: limits",
}
"""What no version of Landlock keeps the same user from doing; ``weaknesses`` says so."""
SINCE = {
    "own snapshot: truncate": landlock.TRUNCATE_SINCE,
    "victim: truncate": landlock.TRUNCATE_SINCE,
    "network: listen": landlock.NET_SINCE,
    "process: signal": landlock.SCOPE_SINCE,
    "process: abstract socket": landlock.SCOPE_SINCE,
}


@dataclass(frozen=True, kw_only=True)
class Place:
    """An instance, its image and snapshot, and another instance with a live process and sockets."""

    spec: LaunchSpec
    victim: Path
    victim_pid: int
    abstract: str

    def run(self, *, memory_is_written: bool = False) -> dict[str, str]:
        """What came of each act of a confined hostile program."""
        assert self.spec.boot is not None
        own = self.spec.work_dir.parent
        said_path = self.spec.vmm_log.with_name("said")
        for path in (said_path, self.spec.run_dir / "own.sock"):
            path.unlink(missing_ok=True)
        arguments = [own, self.spec.boot.kernel, self.spec.memory, self.victim, self.victim_pid]
        arguments += [stack_of(self.victim_pid), self.abstract]
        vmm = process.spawn(
            [PYTHON, "-I", str(PROGRAM), *map(str, arguments)],
            log_path=self.spec.vmm_log,
            stdout_path=said_path,
            pass_fds=(),
            cwd=own,
            mark=self.spec.run_dir,
            starter=confinement.starter(self.spec, PYTHON, kvm=False, memory_is_written=memory_is_written),
        )
        try:
            assert process.wait_gone(vmm, 60)
        finally:
            process.kill_and_wait(vmm)
        said = said_path.read_text()
        assert said, self.spec.vmm_log.read_text()
        found: dict[str, str] = json.loads(said)
        return found


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    own, image, snapshot, victim = (tmp_path / name for name in ("own", "image", "snapshot", "victim"))
    for directory in (own, own / "work", own / "run", own / "logs", image, snapshot, victim):
        directory.mkdir()
    for path in (own / "instance.json", own / "work/disk.raw", image / "kernel", image / "initrd"):
        path.write_bytes(b"content")
    for path in (snapshot / "memory", own / "work/spare", own / "work/other"):
        path.write_bytes(b"#!/bin/sh\n")
    for number in range(15):
        (victim / str(number)).write_bytes(b"victim's")
    abstract = f"ramet-test-{secrets.token_hex(4)}"
    with ExitStack() as stack:
        for address in (str(victim / "qmp.sock"), f"\0{abstract}"):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.bind(address)
            sock.listen()
        sleeper = subprocess.Popen(["sleep", "600"])
        stack.callback(sleeper.wait)
        stack.callback(sleeper.kill)
        yield Place(
            spec=LaunchSpec(
                name="web",
                hardware=Hardware(memory_mib=128, cpus=1, accelerator=Accelerator.TCG),
                memory=snapshot / "memory",
                disk=own / "work/disk.raw",
                work_dir=own / "work",
                run_dir=own / "run",
                vmm_log=own / "logs/vmm.log",
                console_log=own / "logs/console.log",
                boot=BootFiles(kernel=image / "kernel", initrd=PROGRAM, cmdline=""),
            ),
            victim=victim,
            victim_pid=sleeper.pid,
            abstract=abstract,
        )


def stack_of(pid: int) -> int:
    """An address that a process can write to."""
    return next(one.start for one in procfs.mappings(pid) if one.path == "[stack]")


def beyond_root() -> set[str]:
    """What even an unconfined process may not do here: no capability for it, or the host's own rules."""
    return set() if os.geteuid() == 0 else {"make a device", "process: trace", "process: write its memory"}


def done(found: dict[str, str]) -> set[str]:
    return {act for act, result in found.items() if result == "done"}


@requires("landlock")
def test_a_hostile_program_reaches_nothing_but_its_own(place: Place) -> None:
    found = place.run()
    version = landlock.abi_version()
    beyond = {act for act, since in SINCE.items() if version < since}
    assert done(found) == OWN | READ | NEVER_HANDLED | beyond, found
    files = {path.name for path in place.victim.iterdir()} - {"qmp.sock"}
    assert files == set(map(str, range(15)))
    changed = {name for name in files if (place.victim / name).read_bytes() != b"victim's"}
    assert changed == ({"3"} if "victim: truncate" in beyond else set())


@requires("landlock")
def test_a_memory_file_that_the_vmm_opens_for_writing_is_all_that_is_added(place: Place) -> None:
    """QEMU before 8.2, without reflinks, as root: its instance's own snapshot, which nobody else uses."""
    assert done(place.run(memory_is_written=True)) - done(place.run()) <= {
        "own snapshot: write",
        "own snapshot: truncate",
    }


@requires("landlock")
def test_without_confinement_the_same_program_does_its_worst(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the test above would prove nothing."""
    monkeypatch.setenv("RAMET_CONFINEMENT", "off")
    found = place.run()
    assert {act for act, result in found.items() if result != "done"} <= beyond_root(), found
    assert confinement.weaknesses() == ["do anything that the user may do: RAMET_CONFINEMENT is off"]


@requires("landlock")
def test_we_ourselves_are_not_confined_by_starting_one_that_is(place: Place) -> None:
    place.run()
    (place.victim / "0").write_bytes(b"ours")
    os.kill(place.victim_pid, signal.SIGCONT)
    status = Path("/proc/self/status").read_text()
    assert "NoNewPrivs:\t0" in status


def test_a_kernel_without_landlock_starts_it_all_the_same_and_says_so(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> int:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(landlock, "abi_version", absent)
    assert "victim: write" in done(place.run())
    (weakness,) = confinement.weaknesses()
    assert weakness.startswith("do anything that the user may do: the kernel has no Landlock")


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (1, ["control other", "truncate a file", "signal the processes", "set the resource limits", "change modes"]),
        (3, ["control other", "signal the processes", "set the resource limits", "change modes"]),
        (7, ["control other", "set the resource limits", "change modes"]),
    ],
)
def test_what_a_version_does_not_enforce_is_named(
    version: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landlock, "abi_version", lambda: version)
    found = confinement.weaknesses()
    assert len(found) == len(expected)
    assert all(one.startswith(begin) for one, begin in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("RAMET_CONFINEMENT", "maybe", "RAMET_CONFINEMENT is 'maybe'"),
        ("RAMET_VMM_READS", "victim", "RAMET_VMM_READS must hold absolute paths, not 'victim'"),
        ("RAMET_VMM_READS", "/usr:/nowhere", "RAMET_VMM_READS names /nowhere, which does not exist"),
    ],
)
def test_a_setting_that_is_none_is_refused(
    place: Place, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=words):
        place.run()


@requires("landlock")
def test_more_can_be_read_and_executed_if_the_user_says_so(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAMET_VMM_READS", f"/usr:{place.victim}")
    assert done(place.run()) - OWN - READ - NEVER_HANDLED - set(SINCE) == {"victim: read", "victim: list"}


@requires("landlock")
def test_a_path_that_cannot_be_looked_at_stops_no_launch(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/etc/passwd/lib:{'x' * 300}:/{'x' * 300}:relative")
    assert done(place.run()) & OWN == OWN


@requires("landlock")
@pytest.mark.parametrize("why", ["Yama", "an ignored signal"])
def test_where_the_child_has_to_be_prepared_it_is_confined_too(
    place: Place, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """Then it is no vfork(2), and some of our own code runs in the child; what that is is found out in /proc, before."""
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN if why != "Yama" else signal.SIG_DFL)
    try:
        monkeypatch.setattr(process, "YAMA_PTRACE_SCOPE", place.spec.disk)
        monkeypatch.setattr(process, "CAP_SYS_PTRACE", 63)  # which nobody has
        assert process._needs_preparing()
        found = place.run()
    finally:
        signal.signal(signal.SIGHUP, old)
    assert done(found) & OWN == OWN
    assert "victim: write" not in done(found)


def test_no_rule_is_of_a_file_that_will_be_deleted(place: Place) -> None:
    """Its blocks would stay until the VMM's process is reaped: a host's init may never do that."""
    found = confinement.rules(place.spec, PYTHON, kvm=False, memory_is_written=False)
    assert [path for path in (*found.load, *found.write) if not path.is_dir()] == []
    live = replace(place.spec, memory=place.spec.disk)
    found = confinement.rules(live, PYTHON, kvm=False, memory_is_written=True)
    assert [path for path in found.write if not path.is_dir()] == [], "what is below work/ needs no rule"
