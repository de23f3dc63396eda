"""Whether KVM is usable, which is more than present, and which CPU its guests have.

Some hosts have a /dev/kvm that opens, creates a VM, and then runs a stock guest a hundred times too slowly (nested, without
hardware virtualisation). Guest code must run at native speed: that takes the CPU's own extension, and a short timed run settles
the rest.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path

from ramet.errors import UnsupportedError
from ramet.linux.kvm import time_loop

DEVICE = Path("/dev/kvm")
PVM_MODULE = Path("/sys/module/kvm_pvm")
LOOP_ITERATIONS = 100_000
LOOP_RUNS = 3
NATIVE_MAX_S = 0.005
"""Natively the loop takes 0.1 ms; where KVM is emulated in software it was seen to take 80."""

ELSEWHERE = "run on a host with hardware virtualisation, or enable it below this one (firmware, nesting)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Why KVM is not usable, and what the user can do about it."""

    why: str
    mend: str


@functools.cache
def problem() -> Problem | None:
    """None if KVM is usable; found out once per process."""
    flags = _cpu_flags() & {"vmx", "svm"}
    if not DEVICE.exists():
        load = f"modprobe {'kvm_amd' if 'svm' in flags else 'kvm_intel'}; for a container: --device /dev/kvm"
        return Problem(why="there is no /dev/kvm", mend=load if flags else ELSEWHERE)
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return Problem(
            why="/dev/kvm is not readable and writable for this user",
            mend="usermod -aG kvm $USER, and log in again; or run as root",
        )
    if not flags:
        whose = " (it is kvm_pvm's)" if PVM_MODULE.exists() else ""
        return Problem(
            why=f"/dev/kvm is there{whose}, but the CPU has neither vmx nor svm: guests would not run at native speed",
            mend=ELSEWHERE,
        )
    try:
        took_s = time_loop(DEVICE, LOOP_ITERATIONS, runs=LOOP_RUNS)
    except OSError as err:
        return Problem(why=f"/dev/kvm is there, but guest code could not be run: {err.strerror}", mend=ELSEWHERE)
    if took_s > NATIVE_MAX_S:
        slow = f"{took_s * 1000:.0f} ms for a loop that takes 0.1 ms natively"
        return Problem(why=f"/dev/kvm is there, but guest code is slow: {slow}", mend=ELSEWHERE)
    return None


def why_not_usable() -> str | None:
    """None if KVM is usable, else the reason."""
    found = problem()
    return None if found is None else found.why


def require_usable(*, otherwise: str) -> None:
    """Raise unless KVM is usable; ``otherwise`` is what the user can do without it.

    Raises:
        UnsupportedError: with the reason.
    """
    why = why_not_usable()
    if why is not None:
        raise UnsupportedError(f"KVM cannot be used here: {why}.", capability="kvm", why=why, hint=otherwise)


@functools.cache
def host_cpu() -> str:
    """Which CPU a guest under KVM has: the host's, by vendor, family, model, stepping and name."""
    found = _cpu_info()
    numbers = "/".join(found.get(key, "?") for key in ("cpu family", "model", "stepping"))
    return f"{found.get('vendor_id', 'unknown')} {numbers} {found.get('model name', '')}".strip()


def _cpu_flags() -> set[str]:
    return set(_cpu_info().get("flags", "").split())


def _cpu_info() -> dict[str, str]:
    """The first CPU of /proc/cpuinfo."""
    first, _, _ = Path("/proc/cpuinfo").read_text().partition("\n\n")
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
