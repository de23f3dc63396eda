"""What a VMM may reach: its image and its own snapshot to read, its instance's ``work/``, ``run/`` and ``logs/`` to write.

The kernel holds it to that from before its first instruction, by three means that do not need each other: Landlock (files), a
seccomp filter (sockets, modes, other processes) and, where Ramet runs as root, a user of its own. One that was taken over cannot
reach another instance. What a kernel does not enforce is said: ``weaknesses``. What it may use up of the host is limited besides,
from before its first guest's instruction: ``limits``.
"""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from ramet import config, process
from ramet.errors import host_errors
from ramet.hypervisors import kvm as kvm_device
from ramet.hypervisors import ownership, users
from ramet.hypervisors.base import LaunchSpec
from ramet.linux import credentials, landlock, seccomp
from ramet.model import MIB
from ramet.process import Child

SYSTEM: Final = tuple(
    Path(path)
    for path in (
        "/usr",
        "/lib",
        "/lib64",
        "/bin",
        "/etc/ld.so.cache",
        "/etc/ld.so.preload",
        "/etc/ld-musl-x86_64.path",
        "/sys/devices/system",
    )
)
STORES: Final = (Path("/nix/store"), Path("/gnu/store"))
"""Where some distributions keep every library."""
DEVICES: Final = tuple(Path(path) for path in ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"))
LIMITS: Final[Mapping[int, int]] = {
    **process.NO_CORE_DUMPS,
    resource.RLIMIT_NOFILE: 2048,
    resource.RLIMIT_MEMLOCK: 0,
    resource.RLIMIT_RTPRIO: 0,
    resource.RLIMIT_NICE: 0,
}
"""Of every VMM: the most that it may have. docs/security.md says why of each."""
TASKS: Final = 4096
"""Processes and threads of a VMM's own user, an eighth of what the smallest kernels have. A QEMU has its CPUs, 64 workers at most
(include/block/aio.h, THREAD_POOL_MAX_THREADS_DEFAULT) and a handful; but a VMM of earlier that nobody has reaped counts too, as
in a container whose first process does not wait for others (kernel/exit.c, release_task).
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """How one VMM is confined."""

    spec: LaunchSpec
    user: int | None
    """Whom it runs as; None: as we do."""
    memory_is_written: bool
    """It opens its memory file for writing, wherever that is."""
    limits: Mapping[int, int]
    """The most that it may use of a resource, for ``process.spawn``."""
    start: process.Starter
    """Calls what starts it in a thread that is confined as it is to be."""

    def hand_over(self) -> None:
        """Give its user what is the VMM's own: to be called just before it is started.

        Raises:
            HostError: if the file system does not know owners.
        """
        if self.user is not None:
            with host_errors(f"give the VMM of {self.spec.name!r} its files"):
                ownership.hand_over(self.spec, self.user)

    def lent(self) -> AbstractContextManager[None]:
        """For the time of its start, let its user open what is published: its image, its own snapshot."""
        if self.user is None:
            return nullcontext()
        group = users.user_number(self.spec.snapshot_of or self.spec.instance_id)
        return ownership.lent(self.spec, self.user, group, memory_is_written=self.memory_is_written)


def of(
    spec: LaunchSpec,
    program: str,
    *,
    kvm: bool,
    memory_is_written: bool,
    ends_at_file_limit: bool = False,
    needs_calls: tuple[str, ...] = (),
) -> Confinement:
    """How ``spec``'s VMM is confined here: by whatever means there are; with ``RAMET_CONFINEMENT=off`` it has no core dumps, and
    that is all.

    ``ends_at_file_limit``: it takes a file that has become as large as may be for its own end, where the filter does not keep
    SIGXFSZ from it. Then its files have no limit.
    ``needs_calls``: what the filter refuses to others (``seccomp.REFUSED``).

    Raises:
        ConfigError: if a setting is nonsense.
        HostError: if it has no disk.
    """
    if not config.confinement_wanted():
        return Confinement(
            spec=spec,
            user=None,
            memory_is_written=memory_is_written,
            limits=process.NO_CORE_DUMPS,
            start=process.as_it_is,
        )
    allowed = rules(spec, program, kvm=kvm, memory_is_written=memory_is_written) if why_no_landlock() is None else None
    user = users.user_number(spec.instance_id) if users.why_no_users(program, kvm=kvm) is None else None
    filtered_but = needs_calls if seccomp.why_not() is None else None
    groups = users.kvm_groups() if kvm else ()
    if spec.snapshot_of is not None:
        groups += (users.user_number(spec.snapshot_of),)
    start = partial(_confined, allowed, user, groups, filtered_but, spec.hardware.memory_mib * MIB)
    limits = {**LIMITS}
    if user is not None:  # or it would be the number of all that the user has
        limits[resource.RLIMIT_NPROC] = TASKS
    if not ends_at_file_limit or filtered_but is not None:
        limits[resource.RLIMIT_FSIZE] = _largest_file(spec)
    return Confinement(spec=spec, user=user, memory_is_written=memory_is_written, limits=limits, start=start)


def _largest_file(spec: LaunchSpec) -> int:
    """What it writes is no larger: its disk has its size from the beginning. A log can grow as far, and then grows no more."""
    with host_errors(f"see how large {spec.disk} is"):
        return max(spec.disk.stat().st_size, spec.hardware.memory_mib * MIB)


def _confined(
    allowed: landlock.Rules | None,
    user: int | None,
    groups: tuple[int, ...],
    filtered_but: tuple[str, ...] | None,
    memory_bytes: int,
    start: Callable[[], Child],
    limit: Callable[[Child], None],
) -> Child:
    """Call ``start`` in a thread of its own that has given up the rest. A process that it starts has given it up for ever.
    ``limit`` is called in a thread that has the same user, which may, and not the filter, which refuses to limit others.

    Nothing else of this process is restricted: all of it belongs to a thread.

    Raises:
        OSError: if the kernel refuses; ``start`` was not called then. Whatever the two raise.
    """

    tids: list[int] = []

    def restricted() -> Child:
        tids.append(threading.get_native_id())
        credentials.forbid_new_privileges()
        if allowed is not None:  # its paths are opened by the user that we are
            landlock.restrict_this_thread(allowed)
        if user is not None:
            credentials.become(user, groups)
        with ThreadPoolExecutor(1, thread_name_prefix="filtered") as pool:
            child = pool.submit(behind_filter).result()
            limit(child)
            return child

    def behind_filter() -> Child:
        tids.append(threading.get_native_id())
        if filtered_but is not None:
            seccomp.restrict_this_thread(but=filtered_but, small_pages_of_bytes=memory_bytes)
        return start()

    with credentials.dumpable_kept():
        try:
            with ThreadPoolExecutor(1, thread_name_prefix="confined") as pool:
                return pool.submit(restricted).result()
        finally:
            for tid in tids:
                credentials.wait_for_end_of_thread(tid)


def hint() -> str:
    """What to do about a launch that failed because of this; nothing, where nothing is confined."""
    if not config.confinement_wanted():
        return ""
    return " If it was refused a file that it needs: RAMET_VMM_READS=/that/directory, or RAMET_CONFINEMENT=off."


def rules(spec: LaunchSpec, program: str, *, kvm: bool, memory_is_written: bool) -> landlock.Rules:
    """``memory_is_written``: the VMM opens its memory file for writing, wherever that is.

    Directories are named and not files: a rule keeps its inode, and so the blocks of a file that was deleted, until the VMM's
    process is reaped, which some init processes never do (security/landlock/fs.c, get_inode_object).
    """
    loaded = {file.parent for file in (spec.boot.kernel, spec.boot.initrd)} if spec.boot is not None else set()
    if spec.vmstate is not None:
        loaded.add(spec.vmstate.parent)
    written = [spec.work_dir, spec.run_dir, spec.vmm_log.parent]
    # What is sealed is in no directory, and needs no rule.
    if spec.work_dir not in spec.memory.parents and not spec.memory_is_sealed:
        if memory_is_written:
            written.append(spec.memory)  # its own snapshot's, beside files that it may not write
        else:
            loaded.add(spec.memory.parent)
    return landlock.Rules(
        read=(*SYSTEM, *config.more_that_vmms_read(), *_installation(Path(program).resolve())),
        load=tuple(sorted(loaded)),
        use=(*DEVICES, *((kvm_device.DEVICE,) if kvm else ())),
        write=tuple(written),
    )


def weaknesses(program: str, *, kvm: bool) -> list[str]:
    """What the kernel does not keep a VMM that was taken over from doing to what is not its own, in words; the worst first."""
    if not config.confinement_wanted():
        return [f"do anything that the user may do: {users.OFF}"]
    why_no_filter, why_same_user = seccomp.why_not(), users.why_no_users(program, kvm=kvm)
    version = 0 if why_no_landlock() is not None else landlock.abi_version()
    found = []
    if why_same_user is not None:
        if os.geteuid() == 0:
            found.append(f"use root's capabilities: {why_same_user}")
        if version == 0:
            found.append(f"read and write the same user's files: {why_no_landlock()}")
        if why_no_filter is not None:
            found.append(f"control other instances through their sockets: {why_no_filter}")
            found.append("set the resource limits of the same user's processes, and so end them")
            found.append("change modes, times and extended attributes of the same user's files")
            if 0 < version < landlock.TRUNCATE_SINCE:
                found.append("truncate the same user's files by their paths")
        if version < landlock.SCOPE_SINCE:
            found.append("signal the processes of the same user")
        return found
    if version == 0:
        found.append(f"read what every user may read: {why_no_landlock()}")
    if why_no_filter is not None and version < landlock.TRUNCATE_SINCE:
        found.append(f"change its own snapshot, while it starts: {why_no_filter}")
    return found


def means(program: str, *, kvm: bool) -> str:
    """By what a VMM is confined here, in words."""
    found = []
    if why_no_landlock() is None:
        found.append(f"Landlock ABI {landlock.abi_version()}")
    if seccomp.why_not() is None:
        found.append("a seccomp filter")
    why_same_user = users.why_no_users(program, kvm=kvm)
    found.append("limits of resources")
    found.append("a user of its own" if why_same_user is None else f"no user of its own ({why_same_user})")
    return ", ".join(found)


def why_not() -> str | None:
    """None if VMMs are confined here by Landlock or by a filter, else why they are not.

    Raises:
        ConfigError: if ``$RAMET_CONFINEMENT`` is set to nonsense.
    """
    if not config.confinement_wanted():
        return users.OFF
    if seccomp.why_not() is None:
        return None
    return why_no_landlock()


def why_no_landlock() -> str | None:
    """None if the kernel has Landlock, else why it has not."""
    try:
        landlock.abi_version()
    except OSError as err:
        return f"the kernel has no Landlock ({err.strerror})"
    return None


def _installation(program: Path) -> Iterator[Path]:
    """Where a program that is not installed in /usr has its libraries and data."""
    yield program
    if program.parent.name == "bin":
        for name in ("lib", "lib64", "libexec", "share/qemu"):
            yield program.parent.parent / name
    for store in STORES:
        if store in program.parents:
            yield store
    for directory in os.environ.get("LD_LIBRARY_PATH", "").split(":"):
        if directory.startswith("/"):
            yield Path(directory)
