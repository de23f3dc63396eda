"""The console's log: its last lines for an error, and whether the guest's kernel panicked.

A guest that panics resets its machine (``panic=-1``), which ends its VMM as a reboot does: neither QEMU nor Firecracker says
which it was unless somebody is connected at that moment. The kernel's own words are left. It says them on the console at the
highest level, before anything else (kernel/panic.c: console_verbose, pr_emerg); an end in order is told there too, after them.
"""

from __future__ import annotations

from ramet.guests.wire import printable
from ramet.linux import foreign
from ramet.paths import InstancePaths

PANIC = "Kernel panic - not syncing"
IN_ORDER = "reboot: "
"""``reboot: Power down``, ``Restarting system``, ``System halted`` (kernel/reboot.c); a panic's reset says nothing."""
READ_BYTES = 64 * 1024
"""The report of a panic, with its traces, is much shorter."""
LINES_BEFORE, LINES_AFTER = 12, 12
LINE_CHARACTERS = 160
TAIL_BYTES = 1500


def size_bytes(paths: InstancePaths) -> int:
    """How much has been said so far."""
    return foreign.size_bytes(paths.console_log)


def tail(paths: InstancePaths) -> str:
    """The end of what the guest's console says, for an error; empty if it says nothing."""
    return foreign.read_tail(paths.console_log, limit=TAIL_BYTES).decode(errors="replace")


def panic(paths: InstancePaths, offset_bytes: int) -> str | None:
    """What a guest's kernel that panicked said of it, as a sentence and its last lines; None if it did not.

    Call it of a VMM that has ended. ``offset_bytes`` is where its output begins: an earlier guest may have panicked too.
    """
    said_bytes = size_bytes(paths) - offset_bytes  # negative: somebody has emptied the log
    text = foreign.read_tail(paths.console_log, limit=min(said_bytes, READ_BYTES) if said_bytes >= 0 else READ_BYTES)
    lines = text.decode(errors="replace").splitlines()
    found = max((number for number, line in enumerate(lines) if PANIC in line), default=None)
    if found is None or any(IN_ORDER in line for line in lines[found:]):
        return None
    why = printable(lines[found].partition(PANIC)[2].lstrip(": ").encode(), limit=LINE_CHARACTERS)
    shown = [
        "  " + printable(line.encode(), limit=LINE_CHARACTERS)
        for line in lines[max(found - LINES_BEFORE, 0) : found + 1 + LINES_AFTER]
    ]
    return (
        f"The guest's kernel panicked{f' ({why})' if why else ''}: its memory is lost. "
        "The live disk is newer than the last snapshot. The console's last lines:\n" + "\n".join(shown)
    )
