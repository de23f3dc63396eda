"""Starting a VMM so that a failure leaves no process and says why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ramet import process
from ramet.errors import LaunchError, RametError, RejectedError
from ramet.model import VmmProcess
from ramet.signals import signals_held

LOG_TAIL_BYTES = 3000


@contextmanager
def launched(
    vmm_name: str,
    instance_name: str,
    spawn: Callable[[], tuple[list[str], VmmProcess]],
    *,
    last_words: Callable[[], str],
    hint: str,
) -> Iterator[VmmProcess]:
    """``spawn`` a VMM for the block; if that fails, kill it and say why with its ``last_words``.

    Raises:
        LaunchError: for every RametError of the block; no process is left, nor is one after any other exception.
    """
    with ExitStack() as held:
        held.enter_context(signals_held())
        command, vmm = spawn()
        try:
            held.close()  # a signal that came while it was started raises here, where it is known whom to kill
            yield vmm
        except RametError as err:
            status = process.exit_status(vmm)
            process.kill_and_wait(vmm)
            reply = f" {err.reply}" if isinstance(err, RejectedError) else ""
            raise LaunchError(
                f"{vmm_name} did not come up for {instance_name!r}: {err.message}{reply}",
                argv=command,
                status=status,
                log_tail=last_words()[-LOG_TAIL_BYTES:],
                hint=hint,
            ) from err
        except BaseException:
            process.kill_and_wait(vmm)
            raise


def last_run(vmm_log: Path) -> str:
    """The log since the last launch (a line that begins with ``$ ``), without the command line itself."""
    with suppress(FileNotFoundError):
        text = vmm_log.read_text(errors="replace")
        start = max(text.rfind("\n$ ") + 1, 0)
        return text[start:].partition("\n")[2]
    return ""
