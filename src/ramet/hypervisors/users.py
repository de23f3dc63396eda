"""The users that VMMs run as where Ramet runs as root, one for each instance: their numbers, whether they can be had here, and
that nothing runs as one whose instance has no VMM.
"""

from __future__ import annotations

import logging
import os
import signal
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from ramet import config
from ramet.errors import CorruptError, HostError
from ramet.hypervisors import kvm as kvm_device
from ramet.linux import capabilities, credentials
from ramet.model import InstanceRecord
from ramet.paths import InstancePaths
from ramet.process import mark_of, start_time_ticks, wait_until
from ramet.store import atomic

log = logging.getLogger(__name__)
END_S: Final = 10.0

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


def end_all_of(paths: InstancePaths) -> None:
    """Kill whatever runs as the user of an instance's VMMs, which has none any more: a VMM that was taken over may have started
    something that outlives it, and bears no mark. Nothing is done where Ramet is not root, and VMMs have no users.

    What a record elsewhere calls its VMM is left alone: two of two stores may have one user, and those of a copied store do.

    Raises:
        HostError: if something is still there ``END_S`` seconds after SIGKILL.
    """
    if os.geteuid() != 0:
        return
    user = user_number(paths.dir.name)
    told: set[int] = set()

    def is_over() -> bool:
        left = [pid for pid in _running_as(user) if not _is_vmm_elsewhere(pid, paths)]
        for pid in left:
            if pid not in told:
                log.warning("process %d runs as the user of %s, which has no VMM: it is killed", pid, paths.dir.name)
                told.add(pid)
            _kill(pid, user)
        return not left

    try:
        wait_until(is_over, END_S, what=f"the processes of user {user} to end")
    except TimeoutError as err:
        raise HostError(
            f"Something that a VMM of {paths.dir.name} has started is still there {END_S:g} s after SIGKILL.",
            hint=f"See what it waits for: ps -U {user}",
        ) from err


def _is_vmm_elsewhere(pid: int, paths: InstancePaths) -> bool:
    """Whether the record of another place, where it says that it belongs, is root's, and says the same."""
    mark = mark_of(pid)
    if mark is None or mark.parent == paths.dir:
        return False
    theirs = InstancePaths(dir=mark.parent)
    try:
        found = theirs.record.lstat()
        if found.st_uid != 0 or not stat.S_ISREG(found.st_mode):
            return False
        if paths.dir.exists() and theirs.dir.samefile(paths.dir):
            return False
        vmm = atomic.read_json(theirs.record, InstanceRecord).vmm
    except (OSError, CorruptError, HostError):
        return False
    return vmm is not None and vmm.pid == pid and vmm.start_time_ticks == start_time_ticks(pid)


def _kill(pid: int, user: int) -> None:
    """By a descriptor: the number may be another's by now."""
    with suppress(OSError):  # it has ended
        pidfd = os.pidfd_open(pid)
        try:
            if _runs_as(Path(f"/proc/{pid}"), user):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)


def _running_as(user: int) -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _runs_as(entry, user)]


def _runs_as(process: Path, user: int) -> bool:
    """Whether a process runs as a user, and has not ended: nobody may have reaped it."""
    try:
        status = (process / "status").read_bytes()
    except OSError:
        return False  # it has gone
    return b"\nUid:\t%d\t" % user in status and start_time_ticks(int(process.name)) is not None


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
