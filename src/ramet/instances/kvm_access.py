"""What mends a /dev/kvm that this user may not open: only what is true of the device, and of the CPU, that are found."""

from __future__ import annotations

import grp
import os
import pwd
import stat

from ramet.hypervisors import kvm
from ramet.hypervisors.kvm import Problem
from ramet.linux import procfs

GROUP_READS_AND_WRITES = stat.S_IRGRP | stat.S_IWGRP


def problem() -> Problem | None:
    """What ``kvm.problem`` finds; of a device that is closed to this user, whether opening it would help, and what opens it."""
    found = kvm.problem()
    if found is None or not kvm.DEVICE.exists() or os.access(kvm.DEVICE, os.R_OK | os.W_OK):
        return found
    status = kvm.DEVICE.stat()
    group = _group(status.st_gid)
    device = (
        f"{kvm.DEVICE} is {stat.filemode(status.st_mode)} of group {status.st_gid if group is None else group.gr_name}"
    )
    if not procfs.cpu_flags() & {"vmx", "svm"}:
        why = f"the CPU has neither vmx nor svm: guests would not run at native speed ({device}: you may not open it either)"
        return Problem(why=why, mend=kvm.ELSEWHERE)
    return Problem(why=f"{device}: you may not read and write it", mend=_mend(status, group))


def _mend(status: os.stat_result, group: grp.struct_group | None) -> str:
    """The group helps only if it may read and write; to be in root's, which owns much else, is not for a user."""
    its_mode_helps = status.st_mode & GROUP_READS_AND_WRITES == GROUP_READS_AND_WRITES
    if group is None or status.st_gid == 0 or not its_mode_helps:
        return f"setfacl -m u:$USER:rw {kvm.DEVICE} (as root; until the next boot); or run as root"
    if _user() in group.gr_mem:
        return (
            f"log in again: you are in the group {group.gr_name}, and were not yet when you logged in; or run as root"
        )
    return f"usermod -aG {group.gr_name} $USER (as root), and log in again; or run as root"


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
