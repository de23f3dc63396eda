"""How well a guest that boots under TCG has measured its timer.

Linux measures its local APIC's timer against 100 ms of the TSC, by a first look and a last (arch/x86/kernel/apic/apic.c,
calibrate_APIC_clock). A look comes late if the host does not run the vCPU just then, and on ``microvm`` the kernel believes what
it saw: with ACPI's reduced hardware it has neither PIT nor PM timer to compare with. After a late first look the period is too
short: the guest does little but take ticks; or, below a limit, Linux does without the timer, and a second CPU never comes up
(seen with 150 ms: "APIC frequency too slow, disabling apic timer"). After a late last one every sleep is too long (seen: 2.3
times), as long as the guest and its forks live. Nothing on the kernel's command line tells it the frequency, so QEMU is asked
what the guest made of it, while it still ticks periodically, and a guest that got it wrong boots again: it has run nothing yet.
"""

from __future__ import annotations

import enum
import re
import time
from collections.abc import Callable

COUNTS_PER_S = 1_000_000_000 // 16
"""QEMU's APIC counts nanoseconds (hw/intc/apic.c), and Linux has it divide them by 16 (APIC_DIVISOR)."""
TOLERANCE = 0.1
ACCEPTED_MEASURING_S = 5.0
"""For a measurement of 100 ms: one that is not over by then has failed, and the kernel does without the timer."""
EVERY_S = 0.02
"""The guest ticks periodically for some 600 ms, until it trusts its TSC."""
_LVTT = re.compile(r"^LVTT\s+0x[0-9a-f]+ (.*)$", re.MULTILINE)
_COUNT = re.compile(r"^Timer\s.*\binitial_count = (\d+)", re.MULTILINE)


class Measured(enum.Enum):
    """What the guest believes of its timer's frequency."""

    WELL = "well"
    TOO_LOW = "too low"
    """Ticks come too early, or not at all: such a guest may never come up."""
    TOO_HIGH = "too high"
    """Sleeps take too long."""
    UNKNOWN = "unknown"
    """It was not seen to tick periodically."""


def measured(look: Callable[[], str], tick_hz: int, deadline_s: float) -> Measured:
    """Wait until a booting guest has measured its timer. ``look`` gives ``info lapic`` of its first CPU, as QEMU prints it;
    ``tick_hz``: how often its kernel ticks.
    """
    end_s = time.monotonic() + deadline_s
    measuring_since_s: float | None = None
    while (now_s := time.monotonic()) < end_s:
        text = look()
        mode, count = _LVTT.search(text), _COUNT.search(text)
        if mode is None or count is None:
            return Measured.UNKNOWN
        words, started = mode[1].split(), int(count[1]) > 0
        if "masked" not in words and started:
            return judged(int(count[1]), tick_hz) if "periodic" in words else Measured.UNKNOWN
        if started:
            measuring_since_s = measuring_since_s or now_s
            if now_s - measuring_since_s > ACCEPTED_MEASURING_S:
                return Measured.TOO_LOW
        time.sleep(EVERY_S)
    return Measured.UNKNOWN


def judged(count: int, tick_hz: int) -> Measured:
    """What a guest that counts so far from tick to tick believes."""
    ratio = count * tick_hz / COUNTS_PER_S
    if abs(ratio - 1) <= TOLERANCE:
        return Measured.WELL
    return Measured.TOO_LOW if ratio < 1 else Measured.TOO_HIGH
