"""The raw mechanism, as little code as it takes: no store, no locks, no records, no checks, no identity, nothing durable.

Derive the disk, start the VMM with Ramet's command line, load the device state, let it run on, and ask the agent. What Ramet
takes beyond this is Ramet's.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from ramet.bench import floor_firecracker, floor_qemu, raw
from ramet.bench.hand import Asleep, Awake
from ramet.model import Hypervisor

STEPS = ("derive", "start", "load", "thaw and command")


def woken(asleep: Asleep, scratch: Path) -> AbstractContextManager[Awake]:
    """The guest, running, for the block; then its VMM is killed and its files are gone."""
    by_hand = floor_qemu.woken if asleep.hypervisor is Hypervisor.QEMU else floor_firecracker.woken
    return by_hand(asleep, scratch)


def answer_command(asleep: Asleep, scratch: Path, *, then: Sequence[str] = ()) -> dict[str, float]:
    """Wake it, thaw it and run ``true``; seconds in total, by step, and until the command ``then`` has ended, if given.

    Raises:
        VmmError, GuestError: if it does not come up or answer.
    """
    with woken(asleep, scratch) as guest:
        guest.agent.run(["true"], raw.THAW)
        found = {**guest.steps, "thaw and command": guest.clock.lap(), "total": guest.clock.total()}
        if then:
            guest.agent.run(then)
            found["then"] = guest.clock.total()
        return found
