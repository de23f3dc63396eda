"""Whether KVM is usable, which is more than present.

Some hosts have a /dev/kvm that opens, creates a VM, and then runs a stock guest a hundred times too slowly (nested, without
hardware virtualisation). Guest code must run at native speed, and that takes the CPU's own extension.
"""

from __future__ import annotations

import os
from pathlib import Path

from ramet.errors import UnsupportedError

DEVICE = Path("/dev/kvm")


def why_not_usable() -> str | None:
    """None if KVM is usable, else the reason."""
    if not DEVICE.exists():
        return "there is no /dev/kvm"
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return "/dev/kvm is not readable and writable for this user"
    flags = _cpu_flags()
    if not flags & {"vmx", "svm"}:
        return "/dev/kvm is there, but the CPU has neither vmx nor svm: guests would not run at native speed"
    return None


def require_usable() -> None:
    """Raise unless KVM is usable.

    Raises:
        UnsupportedError: with the reason.
    """
    why = why_not_usable()
    if why is not None:
        raise UnsupportedError(
            f"KVM cannot be used here: {why}.",
            capability="kvm",
            why=why,
            hint="Use --accelerator tcg, which needs no KVM.",
        )


def _cpu_flags() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return set()
