"""Whether KVM is usable, which is more than present.

Some hosts have a /dev/kvm that opens, creates a VM, and then runs a stock guest a hundred times too slowly (nested, without
hardware virtualisation). Guest code must run at native speed: that takes the CPU's own extension, and a short timed run settles
the rest.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

from ramet.errors import UnsupportedError
from ramet.linux.kvm import time_loop

DEVICE = Path("/dev/kvm")
LOOP_ITERATIONS = 100_000
LOOP_RUNS = 3
NATIVE_MAX_S = 0.005
"""Natively the loop takes 0.1 ms; where KVM is emulated in software it was seen to take 80."""


@functools.cache
def why_not_usable() -> str | None:
    """None if KVM is usable, else the reason; found out once per process."""
    if not DEVICE.exists():
        return "there is no /dev/kvm"
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return "/dev/kvm is not readable and writable for this user"
    flags = _cpu_flags()
    if not flags & {"vmx", "svm"}:
        return "/dev/kvm is there, but the CPU has neither vmx nor svm: guests would not run at native speed"
    try:
        took_s = time_loop(DEVICE, LOOP_ITERATIONS, runs=LOOP_RUNS)
    except OSError as err:
        return f"/dev/kvm is there, but guest code could not be run: {err.strerror}"
    if took_s > NATIVE_MAX_S:
        return (
            f"/dev/kvm is there, but guest code is slow: {took_s * 1000:.0f} ms for a loop that takes 0.1 ms natively"
        )
    return None


def require_usable(*, otherwise: str) -> None:
    """Raise unless KVM is usable; ``otherwise`` is what the user can do without it.

    Raises:
        UnsupportedError: with the reason.
    """
    why = why_not_usable()
    if why is not None:
        raise UnsupportedError(f"KVM cannot be used here: {why}.", capability="kvm", why=why, hint=otherwise)


def _cpu_flags() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return set()
