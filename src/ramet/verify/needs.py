"""What sabotages and checks need of a host, and why it lacks it."""

from __future__ import annotations

import errno
import os
import tempfile
from enum import Enum, auto
from pathlib import Path

from ramet.instances.host import Host
from ramet.linux import capabilities, reflink, seccomp
from ramet.model import Hypervisor


class Need(Enum):
    """What of a host some sabotages cannot be committed without."""

    REFLINKS = auto()
    SWAP = auto()
    COUNTED_FILTERS = auto()
    VMM_USERS = auto()
    COPY_IN_RAM = auto()


def lacks(host: Host, hypervisor: Hypervisor) -> dict[Need, str]:
    """What this host has not, and why."""
    no_reflinks = why_no_reflinks(host.home)
    found = {
        Need.REFLINKS: f"this file system has no reflinks ({no_reflinks})" if no_reflinks else None,
        Need.SWAP: why_no_swap(),
        Need.COUNTED_FILTERS: why_no_counted_filters(),
        Need.VMM_USERS: host.why_no_vmm_users(hypervisor),
        Need.COPY_IN_RAM: "this VMM shares the file itself" if host.shares_files(hypervisor) else None,
    }
    return {need: why for need, why in found.items() if why is not None}


def why_no_counted_filters() -> str | None:
    """None if VMMs get a filter of Ramet's, and the kernel says how many a process has; else why not."""
    if "Seccomp_filters:" not in Path("/proc/self/status").read_text():
        return "the kernel does not count filters of system calls (Linux 5.10 does)"
    return seccomp.why_not()


def why_no_swap() -> str | None:
    """None if this host has swap, and we may have another process swapped out; else what to do about it."""
    if len(Path("/proc/swaps").read_text().splitlines()) <= 1:
        return "this host has no swap; `swapon` a file or a zram device, and try again"
    if not capabilities.in_effect(capabilities.CAP_SYS_NICE):
        return "to have another process swapped out takes CAP_SYS_NICE; try again as root"
    return None


def why_no_reflinks(directory: Path) -> str | None:
    """None if FICLONE works in ``directory``, by trying it, since the store is what is judged; else the kernel's reason."""
    try:
        with tempfile.TemporaryFile(dir=directory) as source, tempfile.TemporaryFile(dir=directory) as clone:
            source.write(bytes(range(256)) * 16)
            source.flush()
            reflink.ficlone(clone.fileno(), source.fileno())
    except OSError as err:
        if err.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.ENOSYS):
            return f"FICLONE: {os.strerror(err.errno)}"
        raise
    return None
