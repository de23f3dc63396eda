"""Starting a VMM so that a failure leaves no process and says why."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ramet import process
from ramet.errors import LaunchError, RametError, RejectedError
from ramet.hypervisors.confinement import Confinement
from ramet.linux import foreign
from ramet.model import VmmProcess
from ramet.signals import signals_held

LOG_TAIL_BYTES = 3000
LOG_READ_BYTES = 256 * 1024
"""Of a log, which is the VMM's, no more is believed to matter."""


@contextmanager
def launched(
    vmm_name: str,
    confined: Confinement,
    spawn: Callable[[], tuple[list[str], VmmProcess]],
    *,
    last_words: Callable[[], str],
    hint: str,
) -> Iterator[VmmProcess]:
    """``spawn`` a VMM for the block, in which it opens its files; if that fails, kill it and say why with its ``last_words``.

    Raises:
        LaunchError: for every RametError of the block; no process is left, nor is one after any other exception.
    """
    command: list[str] = []
    vmm: VmmProcess | None = None
    with ExitStack() as lent:
        try:
            with signals_held():  # a signal that comes meanwhile raises at its end, where it is known whom to kill
                lent.enter_context(confined.lent())
                command, vmm = spawn()
            yield vmm
            lent.close()
        except RametError as err:
            if vmm is None:
                raise
            try:
                status = process.exit_status_after(err, vmm)
            finally:
                process.kill_and_wait(vmm)
            reply = f" {err.reply}" if isinstance(err, RejectedError) else ""
            raise LaunchError(
                f"{vmm_name} did not come up for {confined.spec.name!r}: {err.message}{reply}",
                argv=command,
                status=status,
                log_tail=last_words()[-LOG_TAIL_BYTES:],
                hint=hint,
            ) from err
        except BaseException:
            if vmm is not None:
                process.kill_and_wait(vmm)
            raise


def inherited(stack: ExitStack, path: Path) -> tuple[int, Path]:
    """A descriptor of a file for a VMM to inherit, and the path by which it opens the file through that: it may be closed out of
    the directories above (open(2), O_PATH; proc(5), /proc/PID/fd).

    Raises:
        OSError: if there is no such file.
    """
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return fd, Path(f"/proc/self/fd/{fd}")


def last_run(vmm_log: Path) -> str:
    """The log since the last launch (a line that begins with ``$ ``), without the command line itself."""
    text = foreign.read_tail(vmm_log, limit=LOG_READ_BYTES).decode(errors="replace")
    start = max(text.rfind("\n$ ") + 1, 0)
    return text[start:].partition("\n")[2]
