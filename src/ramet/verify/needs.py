"""What sabotages and checks need of a host, and why it lacks it."""

from __future__ import annotations

import errno
import os
import tempfile
from enum import Enum, auto
from pathlib import Path

from ramet import helpers
from ramet.errors import RametError
from ramet.instances.host import Host
from ramet.linux import capabilities, ksm, reflink, seccomp
from ramet.model import Hypervisor

SMAPS_TIMEOUT_S = 10.0


class Need(Enum):
    """What of a host some sabotages cannot be committed without."""

    REFLINKS = auto()
    SWAP = auto()
    COUNTED_FILTERS = auto()
    VMM_USERS = auto()
    COPY_IN_RAM = auto()
    INHERITED_MERGING = auto()


def lacks(host: Host, hypervisor: Hypervisor) -> dict[Need, str]:
    """What this host has not, and why."""
    no_reflinks = why_no_reflinks(host.home)
    found = {
        Need.REFLINKS: f"this file system has no reflinks ({no_reflinks})" if no_reflinks else None,
        Need.SWAP: why_no_swap(),
        Need.COUNTED_FILTERS: why_no_counted_filters(),
        Need.VMM_USERS: host.why_no_vmm_users(hypervisor),
        Need.COPY_IN_RAM: "this VMM shares the file itself" if host.shares_files(hypervisor) else None,
        Need.INHERITED_MERGING: why_no_inherited_merging(),
    }
    return {need: why for need, why in found.items() if why is not None}


def why_no_counted_filters() -> str | None:
    """None if VMMs get a filter of Ramet's, and the kernel says how many a process has; else why not."""
    if "Seccomp_filters:" not in Path("/proc/self/status").read_text():
        return "the kernel does not count filters of system calls (Linux 5.10 does)"
    return seccomp.why_not()


def why_no_inherited_merging() -> str | None:
    """None if a program inherits from its starter that its memory may be merged (KSM), by trying it; else why not."""
    was_wanted = ksm.is_wanted()
    try:
        ksm.allow()
    except OSError as err:
        return f"a process cannot have all of its memory merged here (PR_SET_MEMORY_MERGE, Linux 6.4: {err.strerror})"
    try:
        smaps = helpers.run(["cat", "/proc/self/smaps"], timeout_s=SMAPS_TIMEOUT_S).stdout
    except RametError as err:
        return f"what a program inherits could not be tried: {err.message}"
    finally:
        if not was_wanted:
            ksm.forbid()
    return None if ksm.mergeable_in(smaps) else "PR_SET_MEMORY_MERGE ends with execve(2) here (Linux 6.7 keeps it)"


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
