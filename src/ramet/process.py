"""The only place that starts, finds, stops and waits for VMMs; helper programs are run by helpers.py.

A VMM outlives the command that started it, so it is found again by pid *and* start time *and* boot id: a recycled pid or a
host that was booted anew never passes for it.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import resource
import select
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import NamedTuple, TypeVar

from ramet.errors import HostError, LaunchError, VmmDiedError
from ramet.linux import capabilities, ksm
from ramet.linux.libc import prctl
from ramet.model import VmmProcess

log = logging.getLogger("ramet.process")
T = TypeVar("T")
Child = subprocess.Popen[bytes]
Starter = Callable[[Callable[[], Child], Callable[[Child], None]], Child]
"""Calls what starts a child, and then what limits it, each in a thread that may."""

VMM_MARK = "RAMET_VMM_OF"
"""The environment variable that says whose VMM a process is."""
PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH")
"""Of our environment, what a VMM gets."""
PROC = Path("/proc")
YAMA_PTRACE_SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")
PR_SET_PTRACER = 0x59616D61
PR_SET_PTRACER_ANY = -1 & 0xFFFFFFFFFFFFFFFF
POLL_S = 0.002
PAUSE_MAX_S = 0.1
AGAIN_S = 0.5
"""For a process that a SIGKILL has not reached yet."""
ENDS_WITHIN_S = 0.5
"""From the loss of a session with a VMM to the end of that."""
EXEC_ENDS_WITHIN_S = 0.2
VSIZE, ENV_END = 23, 51
"""Fields of /proc/PID/stat (proc(5))."""
NO_CORE_DUMPS: Mapping[int, int] = {resource.RLIMIT_CORE: 1}
"""One byte: too few for a file, and the kernel's sign not to pipe one to a program either, which 0 is not (fs/coredump.c)."""
KEPT_IGNORED = frozenset({signal.SIGPIPE, signal.SIGXFSZ})
"""As Python has them: a VMM whose log has reached its limit is told so by write(2) (EFBIG), and not ended (setrlimit(2))."""


def wait_until(fact: Callable[[], T | None], deadline_s: float, *, what: str, pause_max_s: float = PAUSE_MAX_S) -> T:
    """Return the first value of ``fact()`` that is neither None nor False; it is asked at least every ``pause_max_s`` seconds.

    Raises:
        TimeoutError: with ``what``, after ``deadline_s`` seconds of the monotonic clock.
    """
    end = time.monotonic() + deadline_s
    pause = min(POLL_S, pause_max_s)
    while True:
        value = fact()
        if value is not None and value is not False:
            return value
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError(what)
        select.select([], [], [], min(pause, left))
        pause = min(pause * 1.5, pause_max_s)


def as_it_is(start: Callable[[], Child], limit: Callable[[Child], None]) -> Child:
    """A starter that confines nothing."""
    child = start()
    limit(child)
    return child


def spawn(
    argv: Sequence[str],
    *,
    log_path: Path,
    pass_fds: Sequence[int],
    cwd: Path,
    mark: Path,
    stdout_path: Path | None = None,
    limits: Mapping[int, int] = NO_CORE_DUMPS,
    starter: Starter = as_it_is,
) -> VmmProcess:
    """Start a VMM that outlives us: own session, stdin /dev/null, output appended to ``log_path`` (stdout to ``stdout_path``, if
    that is given). ``find_marked`` finds it by its ``mark``.

    ``limits`` are the most that it may have of each resource (setrlimit(2)), or less, where we may have less ourselves. They hold
    from when this returns: a process cannot be limited before it is one, and we are not to be limited with it.

    ``PR_SET_PTRACER_ANY`` is set before exec and survives it, so that under Yama's ptrace_scope=1 a later command of the same
    user may read the guest's memory through /proc/PID/mem (prctl(2)).

    ``starter`` calls what starts it, in a confined thread for example, and what limits it, whose user may.

    Its memory is merged with nobody's, even where ours may be (H76).

    Signals are at their defaults and unblocked in it, whatever we were started with (nohup(1), ``&`` in a script), but for those
    that are ``KEPT_IGNORED``.

    Raises:
        LaunchError: if the program could not be executed, or could not be limited and was killed. One that ends at once is no
            error here: ``exit_status`` tells.
    """
    log.info("spawn: %s", shlex.join(argv))
    try:
        with ExitStack() as stack:
            log_fd = _open_to_append(stack, log_path)
            cwd_fd = os.open(cwd, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, cwd_fd)
            os.write(log_fd, os.fsencode(f"$ {shlex.join(argv)}\n"))
            stdout = log_fd if stdout_path is None else _open_to_append(stack, stdout_path)
            # Looked at before: what calls it may have given up /proc.
            prepare = _prepare_vmm if _needs_preparing() else None

            def start() -> Child:
                return subprocess.Popen(
                    list(argv),
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=log_fd,
                    cwd=f"/proc/self/fd/{cwd_fd}",  # whoever starts it may be closed out of what is above
                    env=environment(mark),
                    pass_fds=tuple(pass_fds),
                    start_new_session=True,
                    restore_signals=False,
                    preexec_fn=prepare,
                )

            _reap()
            child = starter(start, lambda child: limit(child, limits, argv))
            with suppress(
                ProcessLookupError, PermissionError
            ):  # what it inherited as 0 takes CAP_SYS_RESOURCE to raise to 1
                resource.prlimit(child.pid, resource.RLIMIT_CORE, (limits.get(resource.RLIMIT_CORE, 1),) * 2)
    except OSError as err:
        raise LaunchError(f"Could not start {argv[0]}: {err.strerror}.", argv=argv, status=None, log_tail="") from err
    except subprocess.SubprocessError as err:  # what went wrong before exec is told in that process alone, in its log
        why = "it could not be prepared (signals, or its memory is to be merged and the kernel does not undo that)"
        raise LaunchError(f"Could not start {argv[0]}: {why}.", argv=argv, status=None, log_tail="") from err
    stat = _stat(child.pid)
    assert stat is not None, "a child is there, if only as a zombie, until we reap it"
    vmm = VmmProcess(pid=child.pid, start_time_ticks=stat.start_time_ticks, boot_id=boot_id())
    _children[vmm] = child
    return vmm


def environment(mark: Path) -> dict[str, str]:
    """Of our own variables, what a VMM needs: one that was taken over shall find no keys and no passwords in its memory."""
    return {name: os.environ[name] for name in PASSED_ON if name in os.environ} | {VMM_MARK: str(mark)}


def _open_to_append(stack: ExitStack, path: Path) -> int:
    """A log. What an earlier VMM has put in its place, such as a socket, goes."""
    with suppress(FileNotFoundError):
        if S_ISDIR(path.lstat().st_mode):
            shutil.rmtree(path)
        elif not S_ISREG(path.lstat().st_mode):
            path.unlink()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    stack.callback(os.close, fd)
    return fd


def find_marked(mark: Path) -> list[VmmProcess]:
    """The live processes that ``spawn`` has started with that ``mark``, whoever called it, by their environment (proc(5))."""
    return [vmm for found, vmm in _marked() if found == mark]


def marked_below(directory: Path) -> list[tuple[str, VmmProcess]]:
    """The live processes that ``spawn`` has started with a mark below ``directory``, and the next part of its path. Those of
    another mount namespace are left out: their directory is another one (mount_namespaces(7)).
    """
    return [
        (mark.relative_to(directory).parts[0], vmm)
        for mark, vmm in _marked()
        if directory in mark.parents and _mount_namespace(vmm.pid) == _mount_namespace(os.getpid())
    ]


def _mount_namespace(pid: int) -> str | None:
    try:
        return str(Path(f"/proc/{pid}/ns/mnt").readlink())
    except OSError:
        return None  # it has ended, or is not ours to look at


def mark_of(pid: int) -> Path | None:
    """Whose VMM a process says that it is; any process may say so."""
    begins = os.fsencode(f"{VMM_MARK}=")
    try:
        environment = _environment(PROC / str(pid))
    except OSError:
        return None  # it has ended, or is another user's
    mark = next((line for line in environment.split(b"\0") if line.startswith(begins)), None)
    return Path(os.fsdecode(mark.removeprefix(begins))) if mark is not None else None


def _marked() -> Iterator[tuple[Path, VmmProcess]]:
    for entry in PROC.iterdir():
        if not entry.name.isdigit():
            continue
        mark = mark_of(int(entry.name))
        ticks = start_time_ticks(int(entry.name)) if mark is not None else None
        if mark is not None and ticks is not None:
            yield mark, VmmProcess(pid=int(entry.name), start_time_ticks=ticks, boot_id=boot_id())


def _environment(entry: Path) -> bytes:
    """Of a process, by its directory in /proc. One that has just begun to execute a program has none yet, and that is waited for:
    execve(2) is seen to succeed, by a descriptor that it closes, before there is one (fs/proc/base.c, environ_read; fs/exec.c).

    Raises:
        OSError: if it has ended, or is not ours to look at.
    """
    ends_at = time.monotonic() + EXEC_ENDS_WITHIN_S
    while True:
        found = (entry / "environ").read_bytes()
        if found or time.monotonic() > ends_at or not _is_in_exec(entry):
            return found
        time.sleep(0.001)


def _is_in_exec(entry: Path) -> bool:
    """Whether a process has an address space, as kernel threads have not, and no environment in it: not even an empty one."""
    line = (entry / "stat").read_bytes()
    fields = line[line.rindex(b")") + 2 :].split()
    vsize, env_end = int(fields[VSIZE - 3]), int(fields[ENV_END - 3])
    return vsize > 0 and env_end == 0


def limit(child: Child, limits: Mapping[int, int], argv: Sequence[str]) -> None:
    """Set the most that a child may have of each resource; less, where it has less.

    Raises:
        LaunchError: if the kernel refuses; it was killed.
    """
    try:
        for number, most in limits.items():
            _, inherited = resource.prlimit(child.pid, number)
            allowed = most if inherited == resource.RLIM_INFINITY else min(inherited, most)
            resource.prlimit(child.pid, number, (allowed, allowed))
    except ProcessLookupError:
        return  # it has ended
    except OSError as err:
        child.kill()
        child.wait()
        raise LaunchError(
            f"The kernel does not let us limit what {argv[0]} may use: {err.strerror}. It was killed.",
            argv=argv,
            status=None,
            log_tail="",
        ) from err


_children: dict[VmmProcess, subprocess.Popen[bytes]] = {}
"""VMMs that this process started: they are reaped here, others by init."""


def _reap() -> None:
    """Whoever starts many VMMs, and has others end them, keeps no zombies."""
    for child in tuple(_children.values()):
        child.poll()


def exit_status(vmm: VmmProcess) -> int | None:
    """The exit status of a VMM that this process started and that has ended; None otherwise."""
    child = _children.get(vmm)
    return child.poll() if child is not None else None


def exit_status_after(err: Exception, vmm: VmmProcess) -> int | None:
    """``exit_status`` of a VMM with which something went wrong: one that went away closes its sockets before it has ended, and
    gets ``ENDS_WITHIN_S`` for it.
    """
    if isinstance(err, VmmDiedError):
        wait_gone(vmm, ENDS_WITHIN_S)
    return exit_status(vmm)


def is_alive(vmm: VmmProcess) -> bool:
    """Whether this very process runs: same pid, same start time, same boot of the host, and not a zombie (H45)."""
    exit_status(vmm)  # reaps our own zombie
    return vmm.boot_id == boot_id() and start_time_ticks(vmm.pid) == vmm.start_time_ticks


def kill_and_wait(vmm: VmmProcess, *, ask_s: float = 0.0, kill_s: float = 10.0) -> str:
    """End a VMM: SIGTERM and ``ask_s`` seconds of patience if positive, then SIGKILL. Returns ``gone``, ``asked`` or ``killed``.

    Signals go through a pidfd that is checked against the start time, so that a recycled pid is never hit.

    One that has not even noticed an earlier SIGKILL waits in the kernel for a disk that does not answer, say: somebody has been
    patient with it before, and it gets ``AGAIN_S`` seconds.

    Raises:
        HostError: if it is still there ``kill_s`` seconds after SIGKILL.
    """
    pidfd = _open_pidfd(vmm)
    if pidfd is None:
        return "gone"
    if _has_sigkill_pending(vmm.pid):
        ask_s, kill_s = 0.0, min(kill_s, AGAIN_S)
    try:
        if ask_s > 0 and _signal_and_wait(pidfd, signal.SIGTERM, ask_s):
            return "asked"
        if not _signal_and_wait(pidfd, signal.SIGKILL, kill_s):
            raise HostError(
                f"Process {vmm.pid} is still there {kill_s:g} s after SIGKILL.",
                hint=f"It waits in the kernel: see its state in /proc/{vmm.pid}/status, and what the kernel's log says.",
            )
        return "killed"
    finally:
        os.close(pidfd)
        exit_status(vmm)


def _has_sigkill_pending(pid: int) -> bool:
    """Whether a SIGKILL waits to be noticed (proc(5), SigPnd and ShdPnd): a process that is ending has noticed it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return False
    masks = [line.split()[1] for line in status.splitlines() if line.startswith(("SigPnd:", "ShdPnd:"))]
    return any(int(mask, 16) >> (signal.SIGKILL - 1) & 1 for mask in masks)


def wait_gone(vmm: VmmProcess, timeout_s: float) -> bool:
    """Wait for a VMM to end by itself."""
    pidfd = _open_pidfd(vmm)
    if pidfd is None:
        return True
    try:
        return _wait_for_end(pidfd, timeout_s)
    finally:
        os.close(pidfd)
        exit_status(vmm)


@functools.cache
def boot_id() -> str:
    """The host's boot id (random(4), /proc/sys/kernel/random/boot_id), which no process outlives."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_time_ticks(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat (proc(5)), or None if there is no such process or it has ended (a zombie)."""
    stat = _stat(pid)
    return None if stat is None or stat.has_ended else stat.start_time_ticks


class _Stat(NamedTuple):
    state: bytes
    threads: int
    start_time_ticks: int

    @property
    def has_ended(self) -> bool:
        """A zombie with threads left is a process whose main thread has ended, in QEMU's exit for example: its files are open."""
        return self.state == b"X" or (self.state == b"Z" and self.threads <= 1)


def _stat(pid: int) -> _Stat | None:
    try:
        line = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name may hold spaces, parentheses, newlines and, cut at 15 bytes, half a character.
    fields = line[line.rindex(b")") + 2 :].split()
    return _Stat(state=fields[0], threads=int(fields[17]), start_time_ticks=int(fields[19]))


def _open_pidfd(vmm: VmmProcess) -> int | None:
    """A pidfd of this very process, or None if it is gone, whoever has its number now (H45)."""
    try:
        pidfd = os.pidfd_open(vmm.pid)
    except OSError as err:
        exit_status(vmm)
        # A number that a thread has now: EINVAL, and ENOENT in newer kernels.
        if err.errno in (errno.ESRCH, errno.EINVAL, errno.ENOENT):
            return None
        raise
    if not is_alive(vmm):
        os.close(pidfd)
        return None
    return pidfd


def _wait_for_end(pidfd: int, timeout_s: float) -> bool:
    poll = select.poll()  # select(2) cannot take a descriptor above 1023
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def _signal_and_wait(pidfd: int, number: int, timeout_s: float) -> bool:
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return True
    return _wait_for_end(pidfd, timeout_s)


def may_trace() -> bool:
    """Whether we may read the memory of any process."""
    return capabilities.in_effect(capabilities.CAP_SYS_PTRACE)


def _needs_preparing() -> bool:
    """Whether anything is to be done between fork and exec. With nothing, subprocess starts a child by vfork(2), and the page
    tables of a whole Python are not copied.
    """
    ignored = {number for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    kept = signal.SIGXFSZ in ignored
    needs_tracer = YAMA_PTRACE_SCOPE.exists() and not may_trace()
    return bool(ignored - KEPT_IGNORED or not kept or blocked or needs_tracer or ksm.is_wanted())


def _prepare_vmm() -> None:
    try:
        prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY)
    except OSError as err:
        if err.errno != errno.EINVAL:  # without Yama, and nothing is needed then
            os.write(2, b"ramet: prctl(PR_SET_PTRACER) failed\n")
    if ksm.is_wanted():
        ksm.forbid()
    # execve(2) keeps ignored signals ignored and blocked ones blocked; a VMM that ignores SIGTERM can only be killed.
    for number in signal.valid_signals():
        if number in KEPT_IGNORED:
            signal.signal(number, signal.SIG_IGN)
        elif signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
