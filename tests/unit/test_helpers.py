"""Helper programs: run to their end under a deadline, found, and ended with all that they started; and waiting for a fact."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ramet import helpers, process
from ramet.errors import CommandError, HostError, UnsupportedError
from ramet.signals import ENDING_SIGNALS, signals_held
from tests.unit.children import exit_codes, fork, identity, own_descriptors, run_in_child

SLEEPER = ["sleep", "600"]


def test_run_gives_both_outputs_and_feeds_stdin() -> None:
    done = helpers.run(["sh", "-c", "cat; echo oops >&2"], timeout_s=20, stdin=b"\0binary\xff")
    assert (done.stdout, done.stderr) == (b"\0binary\xff", "oops\n")
    assert helpers.run(["cat"], timeout_s=20).stdout == b"", "stdin is /dev/null"


def test_run_takes_directory_and_environment(tmp_path: Path) -> None:
    done = helpers.run(["sh", "-c", "pwd; echo $MARK"], timeout_s=20, cwd=tmp_path, env={"MARK": "m"})
    assert done.stdout.decode().split() == [str(tmp_path), "m"]


def test_a_failed_helper_tells_status_command_and_the_tail_of_its_stderr() -> None:
    script = "seq 1 5000 >&2; echo 'the reason \xff' >&2; exit 3"
    with pytest.raises(CommandError) as caught:
        helpers.run(["sh", "-c", script], timeout_s=20)
    err = caught.value
    assert (err.status, err.argv) == (3, ("sh", "-c", script))
    assert err.stderr_tail.endswith("5000\nthe reason \xff\n")
    assert len(err.stderr_tail) <= helpers.STDERR_TAIL_BYTES
    assert "the reason" in err.message


def test_a_helper_that_a_signal_ended_has_a_negative_status() -> None:
    with pytest.raises(CommandError) as caught:
        helpers.run(["sh", "-c", "kill -SEGV $$"], timeout_s=20)
    assert caught.value.status == -signal.SIGSEGV


def test_no_failure_is_taken_for_success_where_the_kernel_gives_no_status() -> None:
    """An ignored SIGCHLD is inherited across exec, from a starter that does not want to reap."""
    old = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with pytest.raises(HostError, match="ignores SIGCHLD"):
            helpers.run(["false"], timeout_s=20)
    finally:
        signal.signal(signal.SIGCHLD, old)


def test_a_missing_program_and_a_missing_directory_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # an unreadable directory in it would be EACCES
    with pytest.raises(UnsupportedError, match="'ramet-no-such-program': it does not exist"):
        helpers.run(["ramet-no-such-program"], timeout_s=20)
    with pytest.raises(HostError, match="there is no directory"):
        helpers.run(["true"], timeout_s=20, cwd=tmp_path / "missing")


def test_a_file_that_cannot_be_executed_is_a_host_error(tmp_path: Path) -> None:
    (tmp_path / "program").write_text("data")
    with pytest.raises(HostError, match="Permission denied"):
        helpers.run([str(tmp_path / "program")], timeout_s=20)


def test_a_helper_that_takes_too_long_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    """``gcc`` starts ``cc1``: killing the one alone would leave the other at work, with our pipes open."""
    before = own_descriptors()
    script = f"sleep 600 & echo $! >{tmp_path}/pid; wait"
    with pytest.raises(HostError, match=r"did not end within 0\.3 s and was killed"):
        helpers.run(["sh", "-c", script], timeout_s=0.3)
    grandchild = int((tmp_path / "pid").read_text())
    process.wait_until(lambda: process.start_time_ticks(grandchild) is None, 20, what="the grandchild's end")
    assert own_descriptors() == before


def test_ctrl_c_ends_the_helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """H47: it is in a group of its own, so that nobody but us ends it."""

    def interrupted(child: subprocess.Popen[bytes], stdin: bytes | None, timeout: float) -> None:
        (tmp_path / "pid").write_text(str(child.pid))
        assert os.getpgid(child.pid) == child.pid != os.getpgid(0)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        helpers.run(SLEEPER, timeout_s=20)
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists()


def test_a_helper_dies_with_us(tmp_path: Path) -> None:
    script = f"echo $$ >{tmp_path}/new && mv {tmp_path}/new {tmp_path}/pid; exec sleep 600"
    pid = fork(lambda: helpers.run(["sh", "-c", script], timeout_s=600))
    process.wait_until((tmp_path / "pid").exists, 20, what="the helper")
    helper = identity(int((tmp_path / "pid").read_text()))
    os.kill(pid, signal.SIGKILL)
    exit_codes([pid])
    process.wait_until(lambda: not process.is_alive(helper), 20, what="the helper's end")


def test_a_helper_whose_parent_died_before_it_could_ask_to_die_with_it_does_not_start() -> None:
    """PR_SET_PDEATHSIG does not look back."""
    assert run_in_child(lambda: helpers.die_with_parent(os.getpid())) == 1
    assert run_in_child(lambda: helpers.die_with_parent(os.getppid())) == 0


# -- find_program ------------------------------------------------------------------------------------------------------


def test_programs_are_found_absolutely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "mkfs.test"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert helpers.find_program("mkfs.test", package="p") == str(program)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", ".")
    assert helpers.find_program("mkfs.test", package="p") == str(program)
    monkeypatch.setenv("PATH", "/nowhere")
    assert helpers.find_program("mkfs.ext4", package="e2fsprogs").endswith("sbin/mkfs.ext4"), (
        "users have no sbin in PATH"
    )
    with pytest.raises(UnsupportedError, match=r"'mkfs\.test' is not on this host") as caught:
        helpers.find_program("mkfs.test", package="testfsprogs")
    assert caught.value.hint == "Install it: apt-get install testfsprogs"


# -- wait_until --------------------------------------------------------------------------------------------------------


def test_wait_until_returns_the_first_value_that_is_neither_none_nor_false() -> None:
    answers: list[object] = [None, False, 0, 1]
    assert process.wait_until(lambda: answers.pop(0), 20, what="it") == 0
    assert answers == [1]


def test_wait_until_asks_at_least_once_and_ends_in_time() -> None:
    assert process.wait_until(lambda: "at once", 0, what="it") == "at once"
    with pytest.raises(TimeoutError, match="the impossible"):
        process.wait_until(lambda: None, 0.02, what="the impossible")


def test_wait_until_passes_what_the_fact_raises() -> None:
    with pytest.raises(ZeroDivisionError):
        process.wait_until(lambda: 1 // 0, 20, what="it")


INTERRUPTED_FORK = """
import os, signal
from ramet import helpers
os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGINT))
try:
    helpers.run(["sleep", "600"], timeout_s=30)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_interruption_in_the_middle_of_a_fork_is_not_forgotten() -> None:
    """Python ignores what a handler raises while the hooks of a fork run; the helper is killed, since we do not wait for it."""
    argv = [sys.executable, "-c", INTERRUPTED_FORK]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=True)
    assert (done.stdout, done.stderr) == ("interrupted\n", "")


def test_held_signals_come_at_the_end_of_the_block() -> None:
    reached = []
    with pytest.raises(KeyboardInterrupt), signals_held():  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("the end")
    assert reached == ["the end"]


def test_held_signals_leave_handlers_masks_and_children_as_they_were() -> None:
    handlers = [signal.getsignal(number) for number in ENDING_SIGNALS]
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_held(), signals_held():
            os.kill(os.getpid(), signal.SIGHUP)
            status = helpers.run(["cat", "/proc/self/status"], timeout_s=20).stdout.decode()
    finally:
        signal.signal(signal.SIGHUP, old)
    assert "\nSigBlk:\t0000000000000000\n" in status
    assert [signal.getsignal(number) for number in ENDING_SIGNALS] == handlers


def test_a_signal_held_twice_comes_once_the_outer_block_has_ended() -> None:
    reached = []
    with pytest.raises(KeyboardInterrupt), signals_held():  # noqa: PT012
        with signals_held():
            os.kill(os.getpid(), signal.SIGINT)
        reached.append("the end")
    assert reached == ["the end"]
