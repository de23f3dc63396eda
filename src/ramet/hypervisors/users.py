"""The users that VMMs run as where Ramet runs as root, one for each instance: their numbers, and whether they can be had here."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from ramet import config
from ramet.hypervisors import kvm as kvm_device
from ramet.linux import capabilities, credentials

USERS: Final = range(0x7000_0000, 0x7FFE_0000)
"""Numbers that nobody gives out (systemd.io, "Users, Groups, UIDs and GIDs"). Which is a VMM's comes from its instance's id."""
NEEDED_FOR_USERS: Final = (
    capabilities.CAP_CHOWN,
    capabilities.CAP_DAC_OVERRIDE,
    capabilities.CAP_FOWNER,
    capabilities.CAP_KILL,
    capabilities.CAP_SETGID,
    capabilities.CAP_SETUID,
    capabilities.CAP_SYS_PTRACE,
)
"""To start a process of another user, and to read its memory afterwards."""
OFF: Final = "RAMET_CONFINEMENT is off"
OTHERS_READ_WRITE: Final = stat.S_IROTH | stat.S_IWOTH


def user_number(instance_id: str) -> int:
    """The user's number that belongs to an instance's id (hexadecimal digits)."""
    return USERS.start + int(instance_id, 16) % len(USERS)


def why_no_users(program: str, *, kvm: bool) -> str | None:
    """None if each VMM gets a user of its own here, else why not: what it is about to run, or the host, does not let it.

    Raises:
        ConfigError: if ``$RAMET_CONFINEMENT`` is set to nonsense.
    """
    if not config.confinement_wanted():
        return OFF
    if os.geteuid() != 0:
        return "Ramet does not run as root"
    if not config.vmm_users_wanted():
        return "RAMET_VMM_USERS is off"
    if not capabilities.in_effect(*NEEDED_FOR_USERS):
        return "root lacks capabilities here, such as CAP_SYS_PTRACE"
    if not credentials.ids_exist(USERS.start, USERS.stop - 1):
        return "this user namespace has too few user ids"
    out_of_reach = _out_of_others_reach(Path(program))
    if out_of_reach is not None:
        return f"{out_of_reach} is closed to other users, and {program} is to be executed"
    if kvm and not (kvm_groups() or _mode(kvm_device.DEVICE) & OTHERS_READ_WRITE == OTHERS_READ_WRITE):
        return f"{kvm_device.DEVICE} is open to root alone"
    return None


def _out_of_others_reach(path: Path) -> Path | None:
    """What keeps a user who owns nothing from executing a program: it, or a directory on the way."""
    real = path.resolve()
    if _mode(real) & 0o005 != 0o005:
        return real
    on_the_way = dict.fromkeys((*path.absolute().parents, *real.parents))
    return next((directory for directory in on_the_way if not _mode(directory) & 0o001), None)


def kvm_groups() -> tuple[int, ...]:
    """The group that may use KVM, as distributions have it."""
    try:
        found = kvm_device.DEVICE.stat()
    except OSError:
        return ()
    is_open = found.st_mode & OTHERS_READ_WRITE == OTHERS_READ_WRITE
    needed = not is_open and found.st_gid != 0  # root's group may read much else
    return (found.st_gid,) if needed and kvm_device.groups_may_use(found.st_mode) else ()


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except OSError:
        return 0
