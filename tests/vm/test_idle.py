"""A guest that does nothing costs its host nothing worth counting: hundreds of forks wait for work on a few cores."""

from __future__ import annotations

import re
import statistics
import time
from contextlib import suppress
from pathlib import Path

from ramet import Host
from tests.file_systems import on_ext4
from tests.kept import Kept
from tests.vm.guests import sh

WINDOW_S = 2.0
WINDOWS = 20
WINDOWS_WITH_PIT = 5
WAKEUPS_PER_S_MAX = 14
"""Some 8 were measured; the PIT alone makes 36, and kcompactd 4."""
RUN_PIT = """
printf '\\066' | dd of=/dev/port bs=1 seek=67
printf '\\000' | dd of=/dev/port bs=1 seek=64
printf '\\000' | dd of=/dev/port bs=1 seek=64
"""
"""Mode 3, which begins anew by itself, every 65,536 of its ticks: so it is after a reset."""
pytestmark = on_ext4


def test_the_vmm_of_a_guest_that_does_nothing_seldom_wakes_up(host: Host, kept: Kept) -> None:
    kept.put_into(host)
    host.restore("web")
    sh(host, "web", "true")
    pid = host.get("web").pid
    assert pid is not None
    seen = wakeups_until_quiet(pid)
    assert min(seen) < WAKEUPS_PER_S_MAX, f"wake-ups a second, {WINDOW_S:.0f} s each: {seen}"
    sh(host, "web", RUN_PIT)
    seen = [wakeups_per_s(pid) for _ in range(WINDOWS_WITH_PIT)]
    assert statistics.median(seen) > WAKEUPS_PER_S_MAX, f"it would be seen: {seen}"


def wakeups_until_quiet(pid: int) -> list[float]:
    """How often the threads of a process were woken up from a wait, in windows up to the first quiet one.

    What wakes it up for nothing does so in every window. What a restore leaves to do (pages to read, a journal to write) does
    not, nor does a host that is busy with something else: 18 a second were measured then, and once 37, for a while.
    """
    seen: list[float] = []
    while len(seen) < WINDOWS and not (seen and seen[-1] < WAKEUPS_PER_S_MAX):
        seen.append(wakeups_per_s(pid))
    return seen


def wakeups_per_s(pid: int) -> float:
    """In one window: of each thread that there is at its end."""
    before, began_s = waits(pid), time.monotonic()
    time.sleep(WINDOW_S)
    after, took_s = waits(pid), time.monotonic() - began_s
    return sum(count - before.get(tid, 0) for tid, count in after.items()) / took_s


def waits(pid: int) -> dict[str, int]:
    """How often each thread has waited so far."""
    counts = {}
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended
            found = re.search(r"^voluntary_ctxt_switches:\s+(\d+)$", status.read_text(), re.MULTILINE)
            counts[status.parent.name] = int(found[1]) if found else 0
    return counts
