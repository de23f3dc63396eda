"""What depends on settings of the whole host, which nobody changes for a test: they are the lab's."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ramet import process
from ramet.hypervisors import confinement, users
from ramet.model import MIB, VmmProcess
from tests import artifacts
from tests.capabilities import any_python, requires
from tests.unit.hypervisors import confined
from tests.unit.hypervisors.confined import Place

pytestmark = requires("kvm", "root", "vmm-users")
CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")
CGROUPS = Path("/sys/fs/cgroup")
HOG = f"grown = bytearray({300 * MIB})"
BOMB = """
import os, signal
signal.alarm(60)
made = 0
try:
    while os.fork():
        made += 1
    signal.pause()
except OSError:
    print(f"{made} were made", flush=True)
"""


@pytest.fixture(autouse=True)
def lab() -> None:
    if not artifacts.in_the_lab():
        pytest.skip("it changes the host")


@pytest.fixture
def place() -> Iterator[Place]:
    yield from confined.made()


def start(place: Place, *argv: str) -> VmmProcess:
    """As a VMM is started."""
    spec = place.spec
    how = confinement.of(spec, argv[0], kvm=False, memory_is_written=False)
    with how.lent():
        how.hand_over()
        return process.spawn(
            argv,
            log_path=spec.vmm_log,
            pass_fds=(),
            cwd=spec.work_dir.parent,
            mark=spec.run_dir,
            limits=how.limits,
            starter=how.start,
        )


def said(place: Place) -> str | None:
    """How many processes the bomb has made. The log has its program, too."""
    found = re.search(r"^(\d+) were made$", place.spec.vmm_log.read_text(), re.MULTILINE)
    return found[1] if found else None


@contextmanager
def piped_to(program: Path, log: Path) -> Iterator[None]:
    """Core dumps are piped to a program, as systemd-coredump and others have it, which says so in a log."""
    program.write_text(f"#!/bin/sh\ncat >/dev/null; echo $1 >>{log}\n")
    program.chmod(0o755)
    before = CORE_PATTERN.read_text()
    CORE_PATTERN.write_text(f"|{program} %p")
    try:
        yield
    finally:
        CORE_PATTERN.write_text(before)


def test_no_core_of_a_vmm_is_piped_to_a_program(place: Place, tmp_path: Path) -> None:
    """H76: a limit of 0, which is no limit to a pipe, does not do."""
    log = tmp_path / "log"
    log.touch()
    with piped_to(tmp_path / "save", log):
        vmm = start(place, "/bin/sleep", "60")
        os.kill(vmm.pid, signal.SIGSEGV)
        assert process.wait_gone(vmm, 20)
        other = subprocess.Popen(["sleep", "60"])
        resource.prlimit(other.pid, resource.RLIMIT_CORE, (0, 0))
        other.send_signal(signal.SIGSEGV)
        other.wait()
        process.wait_until(lambda: log.read_text() != "", 20, what="the other's core to be piped")
    assert log.read_text().split() == [str(other.pid)]


def test_a_vmm_stays_in_the_control_group_of_the_command_that_starts_it(place: Place) -> None:
    """From its first instruction on: this is how a VMM gets limits of memory and of processes (docs/security.md)."""
    assert Path("/proc/self/cgroup").read_text() == "0::/\n"
    (CGROUPS / "cgroup.subtree_control").write_text("+memory +pids")
    group = CGROUPS / "scope"
    group.mkdir()
    try:
        (group / "memory.max").write_text(str(150 * MIB))
        (group / "pids.max").write_text("60")
        (group / "cgroup.procs").write_text(str(os.getpid()))
        vmm = start(place, "/bin/sleep", "60")
        assert Path(f"/proc/{vmm.pid}/cgroup").read_text() == "0::/scope\n"
        assert Path(f"/proc/{vmm.pid}").stat().st_uid == users.user_number(confined.INSTANCE_ID)
        process.kill_and_wait(vmm)
        hog = start(place, any_python(), "-I", "-c", HOG)
        assert process.wait_gone(hog, 60)
        assert process.exit_status(hog) == -signal.SIGKILL, "the kernel ends it, and not us"
        bomb = start(place, any_python(), "-I", "-c", BOMB)
        try:
            made = process.wait_until(lambda: said(place), 60, what="the fork bomb to end")
        finally:
            (CGROUPS / "cgroup.procs").write_text(str(os.getpid()))
            (group / "cgroup.kill").write_text("1")
            process.kill_and_wait(bomb)
    finally:
        (CGROUPS / "cgroup.procs").write_text(str(os.getpid()))
        process.wait_until(lambda: not (group / "cgroup.procs").read_text(), 20, what="the group to be empty")
        group.rmdir()
    assert int(made) < 60
