"""Processes: helpers under a deadline, VMMs that outlive us and are never mistaken for another process (H45)."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest

from ramet import process
from ramet.errors import CommandError, HostError, LaunchError, UnsupportedError
from ramet.model import VmmProcess
from tests.unit.children import exit_codes, fork, identity, own_descriptors, run_in_child

SLEEPER = ["sleep", "600"]
STUBBORN = ["sh", "-c", "trap '' TERM; echo ready; exec sleep 600"]


@pytest.fixture
def spawned(tmp_path: Path) -> Iterator[Callable[..., VmmProcess]]:
    """Starts VMMs of a kind; kills what is left of them."""
    started: list[VmmProcess] = []

    def start(argv: list[str], *, pass_fds: tuple[int, ...] = ()) -> VmmProcess:
        started.append(process.spawn(argv, log_path=tmp_path / "vmm.log", pass_fds=pass_fds, cwd=tmp_path))
        return started[-1]

    yield start
    for vmm in started:
        process.kill_and_wait(vmm)


def wait_for_log(tmp_path: Path, text: str) -> None:
    process.wait_until(lambda: text in (tmp_path / "vmm.log").read_text().splitlines(), 20, what=f"{text} in the log")


def wait_for_descriptors(vmm: VmmProcess, expected: dict[str, str]) -> None:
    """A program that has just begun opens libraries; one that is inherited and should not be never goes away."""

    def as_expected() -> bool:
        entries = [Path(entry.path) for entry in os.scandir(f"/proc/{vmm.pid}/fd")]
        return {entry.name: str(entry.readlink()) for entry in entries if entry.is_symlink()} == expected

    process.wait_until(as_expected, 5, what=f"exactly these descriptors: {expected}")


# -- run ----------------------------------------------------------------------------------------------------------


def test_run_gives_both_outputs_and_feeds_stdin() -> None:
    done = process.run(["sh", "-c", "cat; echo oops >&2"], timeout_s=20, stdin=b"\0binary\xff")
    assert (done.stdout, done.stderr) == (b"\0binary\xff", "oops\n")
    assert process.run(["cat"], timeout_s=20).stdout == b"", "stdin is /dev/null"


def test_run_takes_directory_and_environment(tmp_path: Path) -> None:
    done = process.run(["sh", "-c", "pwd; echo $MARK"], timeout_s=20, cwd=tmp_path, env={"MARK": "m"})
    assert done.stdout.decode().split() == [str(tmp_path), "m"]


def test_a_failed_helper_tells_status_command_and_the_tail_of_its_stderr() -> None:
    script = "seq 1 5000 >&2; echo 'the reason \xff' >&2; exit 3"
    with pytest.raises(CommandError) as caught:
        process.run(["sh", "-c", script], timeout_s=20)
    err = caught.value
    assert (err.status, err.argv) == (3, ("sh", "-c", script))
    assert err.stderr_tail.endswith("5000\nthe reason \xff\n")
    assert len(err.stderr_tail) <= process.STDERR_TAIL_BYTES
    assert "the reason" in err.message


def test_a_helper_that_a_signal_ended_has_a_negative_status() -> None:
    with pytest.raises(CommandError) as caught:
        process.run(["sh", "-c", "kill -SEGV $$"], timeout_s=20)
    assert caught.value.status == -signal.SIGSEGV


def test_a_missing_program_and_a_missing_directory_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # an unreadable directory in it would be EACCES
    with pytest.raises(UnsupportedError, match="'ramet-no-such-program': it does not exist"):
        process.run(["ramet-no-such-program"], timeout_s=20)
    with pytest.raises(HostError, match="there is no directory"):
        process.run(["true"], timeout_s=20, cwd=tmp_path / "missing")


def test_a_file_that_cannot_be_executed_is_a_host_error(tmp_path: Path) -> None:
    (tmp_path / "program").write_text("data")
    with pytest.raises(HostError, match="Permission denied"):
        process.run([str(tmp_path / "program")], timeout_s=20)


def test_a_helper_that_takes_too_long_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    """``gcc`` starts ``cc1``: killing the one alone would leave the other at work, with our pipes open."""
    before = own_descriptors()
    script = f"sleep 600 & echo $! >{tmp_path}/pid; wait"
    with pytest.raises(HostError, match=r"did not end within 0\.3 s and was killed"):
        process.run(["sh", "-c", script], timeout_s=0.3)
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
        process.run(SLEEPER, timeout_s=20)
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists()


def test_a_helper_dies_with_us(tmp_path: Path) -> None:
    script = f"echo $$ >{tmp_path}/new && mv {tmp_path}/new {tmp_path}/pid; exec sleep 600"
    pid = fork(lambda: process.run(["sh", "-c", script], timeout_s=600))
    process.wait_until((tmp_path / "pid").exists, 20, what="the helper")
    helper = identity(int((tmp_path / "pid").read_text()))
    os.kill(pid, signal.SIGKILL)
    exit_codes([pid])
    process.wait_until(lambda: not process.is_alive(helper), 20, what="the helper's end")


def test_a_helper_whose_parent_died_before_it_could_ask_to_die_with_it_does_not_start() -> None:
    """PR_SET_PDEATHSIG does not look back."""
    assert run_in_child(lambda: process._die_with_parent(os.getpid())) == 1
    assert run_in_child(lambda: process._die_with_parent(os.getppid())) == 0


# -- find_program -------------------------------------------------------------------------------------------------


def test_programs_are_found_absolutely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "mkfs.test"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert process.find_program("mkfs.test", package="p") == str(program)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", ".")
    assert process.find_program("mkfs.test", package="p") == str(program)
    monkeypatch.setenv("PATH", "/nowhere")
    assert process.find_program("mkfs.ext4", package="e2fsprogs").endswith("sbin/mkfs.ext4"), (
        "users have no sbin in PATH"
    )
    with pytest.raises(UnsupportedError, match=r"'mkfs\.test' is not on this host") as caught:
        process.find_program("mkfs.test", package="testfsprogs")
    assert caught.value.hint == "Install it: apt-get install testfsprogs"


# -- spawn --------------------------------------------------------------------------------------------------------


@pytest.fixture
def core_dumps() -> Iterator[None]:
    """Core dumps are allowed, as far as the host lets us."""
    limits = resource.getrlimit(resource.RLIMIT_CORE)
    wanted = (
        (4096, max(limits[1], 4096)) if os.geteuid() == 0 and limits[1] != resource.RLIM_INFINITY else (limits[1],) * 2
    )
    resource.setrlimit(resource.RLIMIT_CORE, wanted)
    yield
    resource.setrlimit(resource.RLIMIT_CORE, limits)


@pytest.mark.usefixtures("core_dumps")
def test_a_vmm_has_its_own_session_no_stdin_and_no_core_dumps(
    tmp_path: Path, spawned: Callable[..., VmmProcess]
) -> None:
    """H76: a core dump would write a guest's memory to the host."""
    vmm = spawned(["sh", "-c", "pwd; ulimit -c; echo ready; exec sleep 600"])
    wait_for_log(tmp_path, "ready")
    assert os.getsid(vmm.pid) == vmm.pid != os.getsid(0)
    log = str(tmp_path / "vmm.log")
    wait_for_descriptors(vmm, {"0": "/dev/null", "1": log, "2": log})
    first, *rest = (tmp_path / "vmm.log").read_text().splitlines()
    assert first == "$ sh -c 'pwd; ulimit -c; echo ready; exec sleep 600'", "a person can replay it"
    assert rest == [str(tmp_path), "0", "ready"]
    assert (tmp_path / "vmm.log").stat().st_mode & 0o077 == 0


def test_only_the_descriptors_that_were_passed_are_inherited(
    tmp_path: Path, spawned: Callable[..., VmmProcess]
) -> None:
    with ExitStack() as stack:
        reader, writer = os.pipe()
        stack.callback(os.close, reader)
        stack.callback(os.close, writer)
        vmm = spawned(SLEEPER, pass_fds=(reader,))
        log = str(tmp_path / "vmm.log")
        pipe = str(Path(f"/proc/self/fd/{reader}").readlink())
        wait_for_descriptors(vmm, {"0": "/dev/null", "1": log, "2": log, str(reader): pipe})


def test_a_log_is_continued(tmp_path: Path, spawned: Callable[..., VmmProcess]) -> None:
    (tmp_path / "vmm.log").write_text("earlier\n")
    spawned(["sh", "-c", "echo now"])
    wait_for_log(tmp_path, "now")
    assert (tmp_path / "vmm.log").read_text() == "earlier\n$ sh -c 'echo now'\nnow\n"


def test_a_vmm_starts_with_signals_at_their_defaults(tmp_path: Path, spawned: Callable[..., VmmProcess]) -> None:
    """From nohup(1), from ``&`` in a script, from a thread that blocks signals: what is ignored stays ignored across exec."""
    ignored = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGPIPE)
    old = {number: signal.signal(number, signal.SIG_IGN) for number in ignored}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1])
    try:
        vmm = spawned(SLEEPER)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in old.items():
            signal.signal(number, handler)
    sets = dict(
        line.split(":\t") for line in Path(f"/proc/{vmm.pid}/status").read_text().splitlines() if line[:3] == "Sig"
    )
    assert (int(sets["SigBlk"], 16), int(sets["SigIgn"], 16)) == (0, 0)
    assert process.kill_and_wait(vmm, ask_s=20) == "asked"


def test_a_vmm_that_another_thread_starts_is_the_same(spawned: Callable[..., VmmProcess]) -> None:
    """And it outlives that thread, with which a helper would die."""
    made: list[VmmProcess] = []
    thread = threading.Thread(target=lambda: made.append(spawned(SLEEPER)))
    thread.start()
    thread.join()
    assert process.is_alive(made[0])
    assert not process.wait_gone(made[0], 0.05)


@pytest.mark.parametrize("argv", [["/nowhere/vmm"], ["/dev/null"]], ids=["missing", "not executable"])
def test_a_program_that_cannot_be_executed_is_a_launch_error(
    tmp_path: Path, argv: list[str], spawned: Callable[..., VmmProcess]
) -> None:
    before = own_descriptors()
    with pytest.raises(LaunchError, match=f"Could not start {argv[0]}"):
        spawned(argv)
    assert own_descriptors() == before


def test_a_log_that_cannot_be_written_is_a_launch_error(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="Could not start true: No such file"):
        process.spawn(["true"], log_path=tmp_path / "missing" / "log", pass_fds=(), cwd=tmp_path)


def test_a_vmm_that_ends_at_once_is_found_with_its_status(spawned: Callable[..., VmmProcess]) -> None:
    vmm = spawned(["sh", "-c", "exit 7"])
    assert process.wait_gone(vmm, 20)
    assert process.exit_status(vmm) == 7
    assert not process.is_alive(vmm)
    assert process.kill_and_wait(vmm) == "gone"


def test_argv_that_is_not_utf_8_is_logged_as_it_is(tmp_path: Path, spawned: Callable[..., VmmProcess]) -> None:
    """A store may lie under a path of any bytes."""
    spawned(["echo", os.fsdecode(b"/store/\xff")])
    process.wait_until(lambda: b"\n/store/\xff\n" in (tmp_path / "vmm.log").read_bytes(), 20, what="the output")


# -- alive, and its end -------------------------------------------------------------------------------------------


def test_alive_means_this_very_process(spawned: Callable[..., VmmProcess]) -> None:
    vmm = spawned(SLEEPER)
    assert process.is_alive(vmm)
    recycled = msgspec.structs.replace(vmm, start_time_ticks=vmm.start_time_ticks - 1)
    rebooted = msgspec.structs.replace(vmm, boot_id="00000000-0000-0000-0000-000000000000")
    for other in (recycled, rebooted):
        assert not process.is_alive(other)
        assert process.exit_status(other) is None
        assert process.wait_gone(other, 0)
        assert process.kill_and_wait(other, ask_s=1) == "gone"
    assert process.is_alive(vmm), "the process that has the number now was not touched"


def test_a_number_that_a_thread_has_now_is_no_process() -> None:
    """Threads and processes share their numbers; pidfd_open(2) refuses a thread's with EINVAL, newer kernels with ENOENT."""
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    try:
        assert thread.native_id is not None
        vmm = VmmProcess(pid=thread.native_id, start_time_ticks=1, boot_id=process.boot_id())
        assert process.kill_and_wait(vmm) == "gone"
        assert process.wait_gone(vmm, 0)
        assert not process.is_alive(vmm)
    finally:
        end.set()
        thread.join()


def test_a_zombie_is_not_alive() -> None:
    pid = fork(lambda: None)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    try:
        assert process.start_time_ticks(pid) is None
        vmm = VmmProcess(pid=pid, start_time_ticks=_raw_start_time(pid), boot_id=process.boot_id())
        assert not process.is_alive(vmm)
        assert process.wait_gone(vmm, 0)
        assert process.kill_and_wait(vmm) == "gone"
    finally:
        exit_codes([pid])


def test_ask_then_kill(tmp_path: Path, spawned: Callable[..., VmmProcess]) -> None:
    assert process.kill_and_wait(spawned(SLEEPER), ask_s=20) == "asked"
    assert process.kill_and_wait(spawned(SLEEPER)) == "killed"
    stubborn = spawned(STUBBORN)
    wait_for_log(tmp_path, "ready")
    assert process.kill_and_wait(stubborn, ask_s=0.05) == "killed"
    assert process.exit_status(stubborn) == -signal.SIGKILL
    assert process.kill_and_wait(stubborn) == "gone"


def test_a_child_is_reaped_and_a_process_that_is_not_ours_can_be_ended_too(spawned: Callable[..., VmmProcess]) -> None:
    mine = spawned(SLEEPER)
    process.kill_and_wait(mine)
    assert not Path(f"/proc/{mine.pid}").exists()
    pid = fork(signal.pause)
    assert process.kill_and_wait(identity(pid)) == "killed"
    assert exit_codes([pid]) == [-signal.SIGKILL]


def test_a_process_that_does_not_end_is_an_error(
    spawned: Callable[..., VmmProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that the kernel cannot end (state D)."""
    vmm = spawned(SLEEPER)
    with monkeypatch.context() as patch:
        patch.setattr(signal, "pidfd_send_signal", lambda pidfd, number: None)
        with pytest.raises(HostError, match=r"still there 0\.05 s after SIGKILL"):
            process.kill_and_wait(vmm, kill_s=0.05)
    assert process.is_alive(vmm)


def test_descriptors_beyond_what_select_can_take(spawned: Callable[..., VmmProcess]) -> None:
    """A program that forks VMs by the thousand has more than 1,024 descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 1100
    if hard < wanted:
        pytest.skip(f"the limit of descriptors here is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(1024):
            stack.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        vmm = spawned(SLEEPER)
        assert not process.wait_gone(vmm, 0.01)
        assert process.kill_and_wait(vmm) == "killed"


def test_nothing_is_left_open(spawned: Callable[..., VmmProcess]) -> None:
    before = own_descriptors()
    vmm = spawned(SLEEPER)
    process.wait_gone(vmm, 0)
    process.wait_gone(msgspec.structs.replace(vmm, start_time_ticks=1), 0)
    process.kill_and_wait(vmm)
    process.kill_and_wait(vmm)
    process.wait_gone(vmm, 0)
    assert own_descriptors() == before


@pytest.mark.parametrize(
    "name", [b"a b", b") Z 1 2", b"(((", b"new\nline", "f\u00fcnfzehn Zeich\u00e9".encode()[:15]], ids=repr
)
def test_the_start_time_whatever_the_process_is_called(name: bytes) -> None:
    """Any process may call itself anything, and the kernel cuts the name at 15 bytes, within a character if need be."""
    reader, writer = os.pipe()

    def rename() -> None:
        Path("/proc/self/comm").write_bytes(name)
        os.write(writer, b"x")
        signal.pause()

    plain = fork(signal.pause)
    odd = fork(rename)
    try:
        os.read(reader, 1)
        assert process.start_time_ticks(odd) == _raw_start_time(odd)
        first = process.start_time_ticks(plain)
        assert first is not None
        assert 0 <= _raw_start_time(odd) - first < 100 * os.sysconf("SC_CLK_TCK")
    finally:
        for pid in (plain, odd):
            os.kill(pid, signal.SIGKILL)
        exit_codes([plain, odd])
        os.close(reader)
        os.close(writer)


def _raw_start_time(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])


# -- wait_until ---------------------------------------------------------------------------------------------------


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
