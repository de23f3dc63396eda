"""The only place that starts, finds, stops and waits for processes.

Helper programs are run to their end under a deadline. A VMM outlives the command that started it, so it is found again by
pid *and* start time *and* boot id: a recycled pid or a host that was booted anew never passes for it.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import resource
import select
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ramet.errors import CommandError, HostError, LaunchError, UnsupportedError
from ramet.model import VmmProcess

log = logging.getLogger("ramet.process")
T = TypeVar("T")

PR_SET_PDEATHSIG = 1
PR_SET_PTRACER = 0x59616D61
PR_SET_PTRACER_ANY = -1 & 0xFFFFFFFFFFFFFFFF
STDERR_TAIL_BYTES = 4000
POLL_S = 0.002

_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]
_libc.prctl.restype = ctypes.c_int


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """A helper program that ended with status 0."""

    argv: tuple[str, ...]
    stdout: bytes
    stderr: str


def wait_until(fact: Callable[[], T | None], deadline_s: float, *, what: str) -> T:
    """Return the first value of ``fact()`` that is neither None nor False.

    Raises:
        TimeoutError: with ``what``, after ``deadline_s`` seconds of the monotonic clock.
    """
    end = time.monotonic() + deadline_s
    pause = POLL_S
    while True:
        value = fact()
        if value is not None and value is not False:
            return value
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError(what)
        select.select([], [], [], min(pause, left))
        pause = min(pause * 1.5, 0.1)


def find_program(name: str, *, package: str) -> str:
    """Return the absolute path of a program.

    Raises:
        UnsupportedError: naming the Debian package to install.
    """
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin")
    if found is None:
        raise UnsupportedError(
            f"The program {name!r} is not on this host.",
            capability=name,
            why=f"{name} was not found in PATH",
            hint=f"Install it: apt-get install {package}",
        )
    return found


def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
) -> Completed:
    """Run a helper program to its end; it dies with us.

    Raises:
        CommandError: for a status other than 0, with the tail of its stderr.
        UnsupportedError: if the program does not exist.
        HostError: if it did not end within ``timeout_s``; it has been killed.
    """
    log.debug("run: %s", shlex.join(argv))
    try:
        done = subprocess.run(
            list(argv),
            stdin=subprocess.DEVNULL if stdin is None else None,
            input=stdin,
            capture_output=True,
            timeout=timeout_s,
            cwd=cwd,
            env=None if env is None else dict(env),
            check=False,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - Ramet is single-threaded here
        )
    except FileNotFoundError as err:
        raise UnsupportedError(
            f"Could not run {argv[0]!r}: it does not exist.", capability=argv[0], why="no such program"
        ) from err
    except subprocess.TimeoutExpired as err:
        raise HostError(f"{shlex.join(argv)} did not end within {timeout_s:g} s and was killed.") from err
    stderr = done.stderr.decode(errors="replace")
    if done.returncode != 0:
        raise CommandError(
            f"{argv[0]} failed.", argv=argv, status=done.returncode, stderr_tail=stderr[-STDERR_TAIL_BYTES:]
        )
    return Completed(argv=tuple(argv), stdout=done.stdout, stderr=stderr)


def spawn(argv: Sequence[str], *, log_path: Path, pass_fds: Sequence[int], cwd: Path) -> VmmProcess:
    """Start a VMM that outlives us: own session, stdin /dev/null, output appended to ``log_path``, no core dumps.

    ``PR_SET_PTRACER_ANY`` is set before exec and survives it, so that under Yama's ptrace_scope=1 a later command of the same
    user may read the guest's memory through /proc/PID/mem (prctl(2)).

    Raises:
        LaunchError: if the program could not be executed.
    """
    log.info("spawn: %s", shlex.join(argv))
    log_fd = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(log_fd, f"$ {shlex.join(argv)}\n".encode())
        child = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=log_fd,
            stderr=log_fd,
            cwd=cwd,
            pass_fds=tuple(pass_fds),
            start_new_session=True,
            preexec_fn=_prepare_vmm,  # noqa: PLW1509 - see run()
        )
    except OSError as err:
        raise LaunchError(
            f"Could not start {argv[0]}: {err.strerror}.", argv=argv, status=None, log_tail=""
        ) from err
    finally:
        os.close(log_fd)
    _children[child.pid] = child
    started = start_time_ticks(child.pid)
    if started is None:  # it cannot be gone: a child stays a zombie until we reap it
        raise LaunchError(f"{argv[0]} vanished at once.", argv=argv, status=child.poll(), log_tail="")
    return VmmProcess(pid=child.pid, start_time_ticks=started, boot_id=boot_id())


_children: dict[int, subprocess.Popen[bytes]] = {}
"""VMMs that this process started: they are reaped here, others by init."""


def exit_status(vmm: VmmProcess) -> int | None:
    """The exit status of a VMM that this process started and that has ended; None otherwise."""
    child = _children.get(vmm.pid)
    return child.poll() if child is not None else None


def is_alive(vmm: VmmProcess) -> bool:
    """Whether this very process runs: same pid, same start time, same boot of the host, and not a zombie (H45)."""
    exit_status(vmm)  # reaps our own zombie
    return vmm.boot_id == boot_id() and start_time_ticks(vmm.pid) == vmm.start_time_ticks


def kill_and_wait(vmm: VmmProcess, *, ask_s: float = 0.0, kill_s: float = 10.0) -> str:
    """End a VMM: SIGTERM and ``ask_s`` seconds of patience if positive, then SIGKILL. Returns ``gone``, ``asked`` or ``killed``.

    Signals go through a pidfd that is checked against the start time, so that a recycled pid is never hit.

    Raises:
        HostError: if it is still there ``kill_s`` seconds after SIGKILL.
    """
    try:
        pidfd = os.pidfd_open(vmm.pid)
    except ProcessLookupError:
        exit_status(vmm)
        return "gone"
    try:
        if not is_alive(vmm):
            return "gone"
        if ask_s > 0 and _signal_and_wait(pidfd, signal.SIGTERM, ask_s):
            return "asked"
        if not _signal_and_wait(pidfd, signal.SIGKILL, kill_s):
            raise HostError(f"Process {vmm.pid} is still there {kill_s:g} s after SIGKILL.")
        return "killed"
    finally:
        os.close(pidfd)
        exit_status(vmm)


def wait_gone(vmm: VmmProcess, timeout_s: float) -> bool:
    """Wait for a VMM to end by itself."""
    try:
        pidfd = os.pidfd_open(vmm.pid)
    except ProcessLookupError:
        return True
    try:
        if not is_alive(vmm):
            return True
        return bool(select.select([pidfd], [], [], timeout_s)[0])
    finally:
        os.close(pidfd)
        exit_status(vmm)


def boot_id() -> str:
    """The host's boot id (random(4), /proc/sys/kernel/random/boot_id)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_time_ticks(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat (proc(5)), or None if there is no such process or it is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(")") + 2 :].split()  # the command name may hold spaces and parentheses
    return None if fields[0] in ("Z", "X") else int(fields[19])


def _signal_and_wait(pidfd: int, number: int, timeout_s: float) -> bool:
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return True
    return bool(select.select([pidfd], [], [], timeout_s)[0])


def _die_with_parent() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _prepare_vmm() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Without Yama the kernel answers EINVAL, and nothing is needed then.
    if _libc.prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0) != 0 and ctypes.get_errno() != errno.EINVAL:
        os.write(2, b"ramet: prctl(PR_SET_PTRACER) failed\n")
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
