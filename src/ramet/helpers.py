"""Helper programs: found, run to their end under a deadline, and ended with all that they started.

They die with us. VMMs do not: those are process.py's; somebody's own command is run by cli/foreground.py.
"""

from __future__ import annotations

import functools
import logging
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from ramet.errors import CommandError, HostError, UnsupportedError
from ramet.linux.libc import prctl
from ramet.signals import signals_held

log = logging.getLogger("ramet.helpers")
PR_SET_PDEATHSIG = 1
STDERR_TAIL_BYTES = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """A helper program that ended with status 0."""

    argv: tuple[str, ...]
    stdout: bytes
    stderr: str


def find_program(name: str, *, package: str | None = None, hint: str | None = None, variable: str | None = None) -> str:
    """Return the absolute path of a program: the one that the environment's ``variable`` names, else the one in PATH.

    Raises:
        UnsupportedError: with ``hint``, or naming the Debian package to install, or the variable that names no program.
    """
    given = os.environ.get(variable) if variable else None
    if given is not None:
        found = shutil.which(given)
        if found is None:
            raise UnsupportedError(
                f"{variable} names {given!r}, which cannot be executed.",
                capability=name,
                why=f"{variable} is not an executable",
                hint=f"Set it to a {name} program, or unset it to use the one in PATH.",
            )
        return str(Path(found).absolute())
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin")
    if found is None:
        raise UnsupportedError(
            f"The program {name!r} is not on this host.",
            capability=name,
            why=f"{name} was not found in PATH",
            hint=hint or f"Install it: apt-get install {package}",
        )
    return str(Path(found).absolute())


def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
) -> Completed:
    """Run a helper program to its end, in a process group of its own; it dies with us.

    Raises:
        CommandError: for a status other than 0, with the tail of its stderr.
        UnsupportedError: if the program does not exist.
        HostError: if it could not be started, or did not end within ``timeout_s``; its group has been killed.
    """
    if (
        signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN
    ):  # wait(2) then gives no status, and subprocess takes that for 0
        raise HostError(
            f"Could not run {argv[0]!r}: this process ignores SIGCHLD, so it would not learn how that ended.",
            hint="Set it back: signal.signal(signal.SIGCHLD, signal.SIG_DFL)",
        )
    log.debug("run: %s", shlex.join(argv))
    try:
        with ExitStack() as held:
            held.enter_context(signals_held())
            child = _start_helper(argv, cwd, env, has_stdin=stdin is not None)
            stdout, raw_stderr = _communicate(child, stdin, timeout_s, held)
    except subprocess.TimeoutExpired as err:
        raise HostError(f"{shlex.join(argv)} did not end within {timeout_s:g} s and was killed.") from err
    stderr = raw_stderr.decode(errors="replace")
    if child.returncode != 0:
        raise CommandError(
            f"{argv[0]} failed.", argv=argv, status=child.returncode, stderr_tail=stderr[-STDERR_TAIL_BYTES:]
        )
    return Completed(argv=tuple(argv), stdout=stdout, stderr=stderr)


def _start_helper(
    argv: Sequence[str], cwd: Path | None, env: Mapping[str, str] | None, *, has_stdin: bool
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE if has_stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env=None if env is None else dict(env),
            process_group=0,
            preexec_fn=functools.partial(die_with_parent, os.getpid()),
        )
    except FileNotFoundError as err:
        if cwd is not None and not cwd.is_dir():
            raise HostError(f"Could not run {argv[0]!r}: there is no directory {cwd}.") from err
        raise UnsupportedError(
            f"Could not run {argv[0]!r}: it does not exist.", capability=argv[0], why="no such program"
        ) from err
    except OSError as err:
        raise HostError(f"Could not run {argv[0]!r}: {err.strerror}.") from err


def _communicate(
    child: subprocess.Popen[bytes], stdin: bytes | None, timeout_s: float, held: ExitStack
) -> tuple[bytes, bytes]:
    """Feed and drain a helper; whatever goes wrong, Ctrl-C included, its group is killed and it is reaped."""
    with child:
        try:
            held.close()  # a signal that came meanwhile raises here, where it is known whom to kill
            return child.communicate(stdin, timeout=timeout_s)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            raise


def die_with_parent(parent: int, *, by: signal.Signals = signal.SIGKILL) -> None:
    """In a child before exec: have the kernel send it that signal when the *thread* that started it ends (prctl(2)), which so has
    to stay until the child has ended.
    """
    with suppress(OSError):
        prctl(PR_SET_PDEATHSIG, by)
    if os.getppid() != parent:  # it died before that
        os._exit(1)
