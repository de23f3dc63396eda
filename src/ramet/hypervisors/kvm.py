"""Whether KVM is usable, which is more than present, and which CPU its guests have.

Some hosts have a /dev/kvm that opens, creates a VM, and then runs a stock guest a hundred times too slowly (nested, without
hardware virtualisation). Guest code must run at native speed: that takes the CPU's own extension, and a short timed run settles
the rest.
"""

from __future__ import annotations

import functools
import grp
import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path

from ramet.errors import UnsupportedError
from ramet.linux.kvm import time_loop

DEVICE = Path("/dev/kvm")
PVM_MODULE = Path("/sys/module/kvm_pvm")
GROUP_READS_AND_WRITES = stat.S_IRGRP | stat.S_IWGRP
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
    closed = _closed()
    if not flags:
        whose = " (it is kvm_pvm's)" if PVM_MODULE.exists() else ""
        too = f" ({closed.why} either)" if closed is not None else ""
        return Problem(
            why=f"/dev/kvm is there{whose}, but the CPU has neither vmx nor svm: guests would not run at native speed{too}",
            mend=ELSEWHERE,
        )
    if closed is not None:
        return closed
    try:
        took_s = time_loop(DEVICE, LOOP_ITERATIONS, runs=LOOP_RUNS)
    except OSError as err:
        return Problem(why=f"/dev/kvm is there, but guest code could not be run: {err.strerror}", mend=ELSEWHERE)
    if took_s > NATIVE_MAX_S:
        slow = f"{took_s * 1000:.0f} ms for a loop that takes 0.1 ms natively"
        return Problem(why=f"/dev/kvm is there, but guest code is slow: {slow}", mend=ELSEWHERE)
    return None


def _closed() -> Problem | None:
    """Whether this user may not open the device; what mends that is what is true of its group and mode."""
    if os.access(DEVICE, os.R_OK | os.W_OK):
        return None
    status = DEVICE.stat()
    group = _group(status.st_gid)
    whose = status.st_gid if group is None else group.gr_name
    why = f"{DEVICE} is {stat.filemode(status.st_mode)} of group {whose}, and you may not open it"
    if group is None or status.st_gid == 0 or not groups_may_use(status.st_mode):  # root's group owns much else
        mend = f"setfacl -m u:$USER:rw {DEVICE} (as root; until the next boot); or run as root"
    elif _user() in group.gr_mem:
        mend = f"log in again: you are in the group {whose}, and were not yet when you logged in; or run as root"
    else:
        mend = f"usermod -aG {whose} $USER (as root), and log in again; or run as root"
    return Problem(why=why, mend=mend)


def groups_may_use(mode: int) -> bool:
    """Whether a device of that mode can be read and written by its group."""
    return mode & GROUP_READS_AND_WRITES == GROUP_READS_AND_WRITES


def _group(gid: int) -> grp.struct_group | None:
    """None: the host has it, and this container does not know it."""
    try:
        return grp.getgrgid(gid)
    except KeyError:
        return None


def _user() -> str | None:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
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
