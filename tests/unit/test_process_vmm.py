"""VMMs as processes: they outlive us, and are never mistaken for another process (H45)."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

import msgspec
import pytest

from ramet import process
from ramet.errors import HostError, LaunchError
from ramet.linux import capabilities, ksm
from ramet.linux.libc import prctl
from ramet.model import VmmProcess
from tests.capabilities import requires
from tests.unit.children import LIBC_SIGNALS, exit_codes, fork, identity, own_descriptors, run_in_child

SLEEPER = ["sleep", "600"]
SYS_EXIT = 60
"""exit(2) on x86-64: of the calling thread alone."""
STUBBORN = ["sh", "-c", "trap '' TERM; echo ready; exec sleep 600"]


@pytest.fixture
def spawned(tmp_path: Path) -> Iterator[Callable[..., VmmProcess]]:
    """Starts VMMs of a kind; kills what is left of them."""
    started: list[VmmProcess] = []

    def start(
        argv: list[str], *, pass_fds: tuple[int, ...] = (), limits: Mapping[int, int] = process.NO_CORE_DUMPS
    ) -> VmmProcess:
        log_path = tmp_path / "vmm.log"
        started.append(
            process.spawn(argv, log_path=log_path, pass_fds=pass_fds, cwd=tmp_path, mark=tmp_path, limits=limits)
        )
        return started[-1]

    yield start
    for vmm in started:
        process.kill_and_wait(vmm)


def wait_for_log(tmp_path: Path, text: str) -> None:
    process.wait_until(lambda: text in (tmp_path / "vmm.log").read_text().splitlines(), 20, what=f"{text} in the log")


def wait_for_descriptors(vmm: VmmProcess, expected: dict[str, str]) -> None:
    """A program that has just begun opens libraries; one that is inherited and should not be never goes away."""

    def as_expected() -> bool:
        held: dict[str, str] = {}
        for entry in os.scandir(f"/proc/{vmm.pid}/fd"):
            with suppress(FileNotFoundError):  # closed since it was listed
                held[entry.name] = str(Path(entry.path).readlink())
        return held == expected

    process.wait_until(as_expected, 5, what=f"exactly these descriptors: {expected}")


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
    """H76: a core dump would write a guest's memory to the host. A limit of one byte forbids those that are piped too."""
    vmm = spawned(["sh", "-c", "pwd; echo ready; exec sleep 600"])
    assert resource.prlimit(vmm.pid, resource.RLIMIT_CORE) == (1, 1)
    wait_for_log(tmp_path, "ready")
    assert os.getsid(vmm.pid) == vmm.pid != os.getsid(0)
    log = str(tmp_path / "vmm.log")
    wait_for_descriptors(vmm, {"0": "/dev/null", "1": log, "2": log})
    first, *rest = (tmp_path / "vmm.log").read_text().splitlines()
    assert first == "$ sh -c 'pwd; echo ready; exec sleep 600'", "a person can replay it"
    assert rest == [str(tmp_path), "ready"]
    assert (tmp_path / "vmm.log").stat().st_mode & 0o077 == 0


CAP_SYS_RESOURCE = 24
BELOW = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
from ramet import process
here = Path(sys.argv[1])
vmm = process.spawn(["sleep", "600"], log_path=here / "vmm.log", pass_fds=(), cwd=here, mark=here)
print(*resource.prlimit(vmm.pid, resource.RLIMIT_CORE))
process.kill_and_wait(vmm)
"""


def test_a_core_limit_of_0_that_we_have_is_raised_for_a_vmm_where_we_may(tmp_path: Path) -> None:
    """H76: with 0 the kernel still pipes a core to a program, if it is told to."""
    done = subprocess.run(
        [sys.executable, "-c", BELOW, tmp_path], capture_output=True, text=True, timeout=60, check=True
    )
    may_raise_it = capabilities.in_effect(CAP_SYS_RESOURCE)
    assert done.stdout.split() == (["1", "1"] if may_raise_it else ["0", "0"])


def test_a_vmm_that_cannot_be_limited_is_not_left(
    spawned: Callable[..., VmmProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def refuse(pid: int, *_limits: object) -> None:
        asked.append(pid)
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(resource, "prlimit", refuse)
    with pytest.raises(LaunchError, match="limit what sleep may use"):
        spawned(SLEEPER)
    assert process.start_time_ticks(asked[0]) is None


@pytest.mark.parametrize(("effective", "expected"), [("000001ffffffffff", True), ("00000000a80425fb", False)])
def test_the_right_to_trace_is_a_capability_and_not_an_uid(
    monkeypatch: pytest.MonkeyPatch, effective: str, expected: bool
) -> None:
    """Root in a container with the usual capabilities must let its VMMs be traced, as any user must (Yama)."""
    monkeypatch.setattr(Path, "read_text", lambda _path: f"Name:\tx\nCapEff:\t{effective}\n")
    assert process.may_trace() is expected


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


WRITES_ON = """
until test "$(ulimit -f)" = 16; do :; done
while echo a line of a log; do :; done >file
echo lives
"""
"""It is limited when it is there already: it waits for that. The unit is 512 bytes (sh(1))."""


def test_a_vmm_whose_file_is_as_large_as_may_be_lives_on(tmp_path: Path, spawned: Callable[..., VmmProcess]) -> None:
    """A guest fills its log: the disk of the host is not full, and the guest not lost."""
    spawned(["sh", "-c", WRITES_ON], limits={resource.RLIMIT_FSIZE: 16 * 512})
    wait_for_log(tmp_path, "lives")
    assert (tmp_path / "file").stat().st_size == 16 * 512


def test_a_vmm_has_no_more_than_we_may_have(spawned: Callable[..., VmmProcess]) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard != resource.RLIM_INFINITY, "the kernel has a number for it"
    vmm = spawned(SLEEPER, limits={resource.RLIMIT_NOFILE: hard + 1})
    assert resource.prlimit(vmm.pid, resource.RLIMIT_NOFILE) == (hard, hard)


def test_a_log_is_continued(tmp_path: Path, spawned: Callable[..., VmmProcess]) -> None:
    (tmp_path / "vmm.log").write_text("earlier\n")
    spawned(["sh", "-c", "echo now"])
    wait_for_log(tmp_path, "now")
    assert (tmp_path / "vmm.log").read_text() == "earlier\n$ sh -c 'echo now'\nnow\n"


@requires("ksm")
def test_nobody_merges_the_memory_of_a_vmm(tmp_path: Path) -> None:
    """H76: a starter whose memory may be merged, a service with ``MemoryKSM=`` for one, hands that on across fork and exec."""

    def start_one_where_all_is_merged() -> None:
        prctl(ksm.PR_SET_MEMORY_MERGE, 1)
        assert ksm.mergeable_bytes(os.getpid()) > 0
        vmm = process.spawn(SLEEPER, log_path=tmp_path / "vmm.log", pass_fds=(), cwd=tmp_path, mark=tmp_path)
        try:
            assert ksm.mergeable_bytes(vmm.pid) == 0
            assert ksm.is_wanted(), "ours is as it was"
        finally:
            process.kill_and_wait(vmm)

    assert run_in_child(start_one_where_all_is_merged) == 0


def test_a_vmm_that_cannot_be_kept_from_merging_is_not_started(
    spawned: Callable[..., VmmProcess], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The kernel may have no memory to undo what it has merged (prctl(2), mm/ksm.c)."""

    def refuse() -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(ksm, "is_wanted", lambda: True)
    monkeypatch.setattr(ksm, "forbid", refuse)
    with pytest.raises(LaunchError, match="could not be prepared"):
        spawned(["touch", str(tmp_path / "started")])
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("of_files", [signal.SIG_IGN, signal.SIG_DFL], ids=["as in Python", "as in an application"])
def test_a_vmm_starts_with_signals_at_their_defaults(
    spawned: Callable[..., VmmProcess], of_files: signal.Handlers
) -> None:
    """From nohup(1), from ``&`` in a script, from a thread that blocks signals: what is ignored stays ignored across exec. Those
    of a pipe that nobody reads and of a file that is as large as may be are ignored."""
    ignored = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGPIPE)
    old = {number: signal.signal(number, signal.SIG_IGN) for number in ignored}
    old[signal.SIGXFSZ] = signal.signal(signal.SIGXFSZ, of_files)
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
    kept = sum(1 << number - 1 for number in (signal.SIGPIPE, signal.SIGXFSZ))
    assert (int(sets["SigBlk"], 16), int(sets["SigIgn"], 16) & ~LIBC_SIGNALS) == (0, kept)
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
        process.spawn(["true"], log_path=tmp_path / "missing" / "log", pass_fds=(), cwd=tmp_path, mark=tmp_path)


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


# -- alive, and its end ------------------------------------------------------------------------------------------------


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


def test_who_starts_vmms_keeps_no_zombies_of_those_that_others_have_ended(spawned: Callable[..., VmmProcess]) -> None:
    first = spawned(SLEEPER)
    os.kill(first.pid, signal.SIGKILL)
    os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{first.pid}").exists(), "it waits for us"
    spawned(SLEEPER)
    assert not Path(f"/proc/{first.pid}").exists()
    assert process.exit_status(first) == -signal.SIGKILL


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


def test_a_process_whose_main_thread_has_ended_is_alive() -> None:
    """/proc/PID/stat says Z for it, and its other threads hold its memory and its files: QEMU's exit passes through that."""
    libc = ctypes.CDLL(None)

    def lose_the_main_thread() -> None:
        threading.Thread(target=signal.pause).start()
        libc.syscall(SYS_EXIT, 0)

    pid = fork(lose_the_main_thread)
    try:
        process.wait_until(lambda: b") Z " in Path(f"/proc/{pid}/stat").read_bytes(), 20, what="the main thread's end")
        vmm = VmmProcess(pid=pid, start_time_ticks=_raw_start_time(pid), boot_id=process.boot_id())
        assert process.is_alive(vmm)
        assert not process.wait_gone(vmm, 0.05)
        assert process.kill_and_wait(vmm) == "killed"
        assert not process.is_alive(vmm)
    finally:
        os.kill(pid, signal.SIGKILL)
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


def test_a_vmm_is_found_by_its_mark_alone(spawned: Callable[..., VmmProcess], tmp_path: Path) -> None:
    vmm = spawned(["sleep", "60"])
    assert process.find_marked(tmp_path) == [vmm]
    assert process.find_marked(tmp_path / "x") == []
    assert process.find_marked(tmp_path.parent) == []
    process.kill_and_wait(vmm)
    assert process.find_marked(tmp_path) == []


def test_one_that_has_just_begun_to_execute_is_found_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel tells of the exec before there is an environment to be read: a moment, which is held here."""
    proc = tmp_path / "proc"
    one = proc / str(os.getpid())
    one.mkdir(parents=True)
    own = Path("/proc/self/stat").read_bytes()
    fields = own[own.rindex(b")") + 2 :].split()
    fields[process.ENV_END - 3] = b"0"
    (one / "stat").write_bytes(own[: own.rindex(b")") + 2] + b" ".join(fields) + b"\n")
    (one / "environ").touch()
    later = threading.Timer(0.03, (one / "environ").write_bytes, [f"{process.VMM_MARK}={tmp_path}\0".encode()])
    monkeypatch.setattr(process, "PROC", proc)
    monkeypatch.setattr(process, "EXEC_ENDS_WITHIN_S", 20.0)
    later.start()
    assert [vmm.pid for vmm in process.find_marked(tmp_path)] == [os.getpid()]
    later.join()
    (one / "environ").write_bytes(b"")
    (one / "stat").write_bytes(own)  # it has an environment, and that is empty
    began = time.monotonic()
    assert process.find_marked(tmp_path) == []
    assert time.monotonic() - began < process.EXEC_ENDS_WITHIN_S


def test_stdout_can_have_a_file_of_its_own(tmp_path: Path) -> None:
    out = tmp_path / "console.log"
    out.write_text("before\n")
    argv = ["sh", "-c", "echo guest; echo vmm >&2"]
    log = tmp_path / "vmm.log"
    vmm = process.spawn(argv, log_path=log, pass_fds=(), cwd=tmp_path, mark=tmp_path, stdout_path=out)
    assert process.wait_gone(vmm, 5)
    assert out.read_text() == "before\nguest\n"
    assert log.read_text().endswith("\nvmm\n")
