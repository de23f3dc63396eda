"""Runs a command that a person gave us as if it ran bare, and tells what it leaves running behind."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from ramet.errors import HostError, host_errors
from ramet.linux import procfs, subreaper
from ramet.signals import ENDING_SIGNALS


@contextmanager
def adopting_orphans() -> Iterator[Callable[[], list[int]]]:
    """While the block runs, a descendant whose parent ends becomes our child, in whatever session it is. What is yielded gives
    the pids of the live descendants that were not there before the block. One that was started by another process on our behalf
    (systemd-run, a container daemon) is no descendant.

    Raises:
        HostError: if the kernel does not let us.
    """
    with host_errors("become the parent of orphans"):
        before = subreaper.is_child_subreaper()
        subreaper.set_child_subreaper(True)
    known = set(procfs.descendants(os.getpid()))
    try:
        yield lambda: [pid for pid in procfs.descendants(os.getpid()) if pid not in known]
    finally:
        subreaper.set_child_subreaper(before)


def run(argv: Sequence[str], *, stdout: int | None = None) -> int:
    """Run somebody's command with our own standard streams, in our own process group, until it ends; returns its status, or
    minus the signal that ended it. Ending signals are passed on, but for the Ctrl-C of a terminal, which it gets by itself.

    Whatever other children we have, or adopt, and that end meanwhile are reaped: nothing that the command does must wait for
    the end of a process in vain.

    Raises:
        HostError: if it could not be started.
    """
    child: subprocess.Popen[bytes] | None = None
    too_early: list[int] = []
    has_terminal = _has_terminal()

    def pass_on(number: int, _frame: object) -> None:
        if child is None:
            too_early.append(number)
        elif child.returncode is None and (number != signal.SIGINT or not has_terminal):
            # Not by send_signal, which reaps a child that has ended. PermissionError: it has become somebody else (sudo).
            with suppress(PermissionError, ProcessLookupError):
                os.kill(child.pid, number)

    before = {number: signal.getsignal(number) for number in ENDING_SIGNALS}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, pass_on)
        try:
            child = subprocess.Popen(list(argv), stdout=stdout)
        except OSError as err:
            raise HostError(f"Could not run {argv[0]!r}: {err.strerror}.") from err
        for early in too_early:
            pass_on(early, None)
        return _wait_and_reap(child)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait_and_reap(child: subprocess.Popen[bytes]) -> int:
    while True:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        if ended is None or ended.si_pid == child.pid:
            return child.wait()
        os.waitpid(ended.si_pid, 0)


def _has_terminal() -> bool:
    """Whether this process has a controlling terminal (tty(4): otherwise ENXIO)."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
