"""Every error that Ramet raises, in one tree.

``RametError`` is the root. Each class carries a stable ``code`` (for ``--json``), an ``exit_status`` (for the shell) and the
objects that a caller needs to act. A message says what was tried, what happened and what to do next.

    RametError
      ConfigError                      2   bad input: nothing was touched
      NotFoundError                    3
      ConflictError                    4
        StateError(actual, required)   4
        InUseError(dependents)         5
        LockedError                    6
      UnsupportedError(capability, why) 7
      HostError                        8
        CommandError(argv, status, stderr_tail)  8
        NoSpaceError                   9
          RoomError(fits, wanted)      9
      VmmError                        10
        LaunchError(argv, status, log_tail)     10
        RejectedError(request, reply)           10
        VmmDiedError                            11
      SnapshotError                   12
        CorruptError                  13
          FormatVersionError          13
        IncompatibleError             14
      GuestError                      15
        GuestTimeoutError             16
      InterruptedByUserError         130
"""

from __future__ import annotations

import errno
import shlex
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class RametError(Exception):
    """The root. ``hint`` is the next step for the person who reads it; it is part of ``str()``."""

    code = "error"
    exit_status = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class ConfigError(RametError):
    """Bad input, refused before anything was touched."""

    code = "bad-input"
    exit_status = 2


class NotFoundError(RametError):
    """A named instance, snapshot or image does not exist."""

    code = "not-found"
    exit_status = 3


class ConflictError(RametError):
    """The request collides with what exists."""

    code = "conflict"
    exit_status = 4


class StateError(ConflictError):
    """A verb was called in a state that it does not start from."""

    code = "wrong-state"

    def __init__(self, message: str, *, actual: str, required: Sequence[str], hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.actual = actual
        self.required = tuple(required)


class InUseError(ConflictError):
    """Something cannot be deleted because others depend on it."""

    code = "in-use"
    exit_status = 5

    def __init__(self, message: str, *, dependents: Sequence[str], hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.dependents = tuple(dependents)


class LockedError(ConflictError):
    """Another command holds the lock."""

    code = "locked"
    exit_status = 6


class UnsupportedError(RametError):
    """The host (or the VMM) lacks a capability."""

    code = "unsupported"
    exit_status = 7

    def __init__(self, message: str, *, capability: str, why: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.capability = capability
        self.why = why


class HostError(RametError):
    """The host refused: an errno that no caller is expected to handle, translated once."""

    code = "host"
    exit_status = 8


class CommandError(HostError):
    """A helper program failed."""

    code = "command-failed"

    def __init__(
        self, message: str, *, argv: Sequence[str], status: int, stderr_tail: str = "", hint: str | None = None
    ) -> None:
        detail = f"{message}\n  command: {shlex.join(argv)}\n  status:  {status}"
        if stderr_tail.strip():
            detail += "\n  stderr:  " + stderr_tail.strip().replace("\n", "\n           ")
        super().__init__(detail, hint=hint)
        self.argv = tuple(argv)
        self.status = status
        self.stderr_tail = stderr_tail


class NoSpaceError(HostError):
    """ENOSPC or EDQUOT: what was being written has been removed again."""

    code = "no-space"
    exit_status = 9


class RoomError(NoSpaceError):
    """Fewer forks fit, in memory or on disk, than were asked for."""

    code = "no-room"
    exit_status = 9

    def __init__(self, message: str, *, fits: int, wanted: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.fits = fits
        self.wanted = wanted


class VmmError(RametError):
    """The VMM failed."""

    code = "vmm"
    exit_status = 10


class LaunchError(VmmError):
    """The VMM did not come up. ``status``: what its process ended with, or minus the number of the signal that killed it; None
    if it had not ended by itself, or that is not known.
    """

    code = "launch-failed"

    def __init__(
        self, message: str, *, argv: Sequence[str], status: int | None, log_tail: str, hint: str | None = None
    ) -> None:
        detail = message
        if status is not None:
            detail += f"\n  its process: {how_it_ended(status)}"
        if log_tail.strip():
            detail += "\n  log: " + log_tail.strip().replace("\n", "\n       ")
        super().__init__(detail, hint=hint)
        self.argv = tuple(argv)
        self.status = status
        self.log_tail = log_tail


class RejectedError(VmmError):
    """The VMM answered a request with an error."""

    code = "vmm-rejected"

    def __init__(self, message: str, *, request: str, reply: str, hint: str | None = None) -> None:
        super().__init__(f"{message}\n  request: {request}\n  reply:   {reply}", hint=hint)
        self.request = request
        self.reply = reply


def how_it_ended(status: int) -> str:
    """A process, in words, from what waiting for it said (``subprocess.Popen.returncode``)."""
    if status >= 0:
        return f"ended with status {status}"
    name = signal.Signals(-status).name if -status in {*signal.Signals} else f"signal {-status}"
    by_whom = (
        " (by the kernel for want of memory, unless somebody sent it: see `dmesg`)" if -status == signal.SIGKILL else ""
    )
    return f"was killed by {name}{by_whom}"


class VmmDiedError(VmmError):
    """The VMM ended while it was needed."""

    code = "vmm-died"
    exit_status = 11


class SnapshotError(RametError):
    """A snapshot cannot be used."""

    code = "snapshot"
    exit_status = 12


class CorruptError(SnapshotError):
    """A published file is not what its manifest says."""

    code = "corrupt"
    exit_status = 13


class FormatVersionError(CorruptError):
    """A file of another version of Ramet, which reads it: nothing is damaged."""

    code = "format-version"


class IncompatibleError(SnapshotError):
    """The snapshot was made by a VMM, machine or CPU model that this one cannot load."""

    code = "incompatible"
    exit_status = 14


SEE_CONSOLE = "`ramet logs NAME` shows the guest's console."
"""The hint of a session with a guest, which does not know whose it is; who does puts that in the place of NAME."""


class GuestError(RametError):
    """The guest's agent refused, or spoke nonsense."""

    code = "guest"
    exit_status = 15


class GuestTimeoutError(GuestError):
    """The guest did not answer in time."""

    code = "guest-timeout"
    exit_status = 16


class InterruptedByUserError(RametError):
    """Ctrl-C or SIGTERM: the state is the one before the verb, or the one after it."""

    code = "interrupted"
    exit_status = 130


@contextmanager
def host_errors(doing: str) -> Iterator[None]:
    """Translate an OSError at a layer's edge: ``doing`` completes the sentence "Could not …".

    Raises:
        NoSpaceError: for ENOSPC and EDQUOT.
        HostError: for every other errno, which stays visible in the message and as ``__cause__``.
    """
    try:
        yield
    except OSError as err:
        raise host_error(doing, err) from err


def host_error(doing: str, err: OSError) -> HostError:
    """What ``host_errors`` raises for ``err``."""
    where = f" ({err.filename})" if err.filename and str(err.filename) not in doing else ""
    text = f"Could not {doing}: {err.strerror or err}{where}."
    if err.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpaceError(text, hint="Free some room on that file system and try again; nothing was kept.")
    if err.errno == errno.EROFS:
        return HostError(text, hint="The file system is read-only: set RAMET_HOME to a writable directory.")
    return HostError(text)
