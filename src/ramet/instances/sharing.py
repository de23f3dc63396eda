"""The memory policy ``share``: until its first sleep a fork maps the memory of the snapshot that it was forked from.

It is the kernel that refuses every write to it: a VMM opens the published file read-only or, where it opens what it maps for
writing (QEMU before 8.2), gets a sealed copy in RAM, one for all forks of a snapshot.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ramet import config, process
from ramet.errors import ConflictError, RoomError, UnsupportedError, host_errors
from ramet.hypervisors import confinement, ownership
from ramet.hypervisors.users import user_number
from ramet.instances.choice import why_no_vmm_users
from ramet.instances.context import Store
from ramet.instances.room import KEPT_BYTES
from ramet.linux import leases, memfd, memory
from ramet.model import MIB, CopyInRam, Hypervisor, InstanceRecord, Manifest, MemoryPolicy
from ramet.paths import SnapshotPaths
from ramet.snapshots import copies_in_ram
from ramet.store.locks import locked

CAPABILITY = "memory policy share"
COPY_IN_RAM_TIMEOUT_S = 600.0
"""How long a copy in RAM that is being made is waited for: many GiB from a slow disk, and then the wake of the first that maps
it. If that is killed, its lock goes with it."""


def may_wake_from(record: InstanceRecord, manifest: Manifest) -> bool:
    """Whether a snapshot is the instance's: it was taken of it, or is the one that it was forked from and shares."""
    if manifest.instance_id == record.id:
        return True
    began_from = record.lineage[-1].snapshot_id if record.lineage else None
    return record.memory_policy is MemoryPolicy.SHARE and began_from == manifest.id


def require_enforced(store: Store, hypervisor: Hypervisor) -> None:
    """Refuse to share where nothing but convention would keep a VMM from writing into what others map.

    Raises:
        UnsupportedError: saying what this host lacks.
    """
    if store.driver(hypervisor).opens_memory_read_only:
        _require_held(hypervisor)
        return
    why = memfd.why_not()
    if why is not None:
        raise UnsupportedError(
            f"Forks cannot share memory here: this VMM opens it for writing, and nothing would refuse a write ({why}).",
            capability=CAPABILITY,
            why=why,
            hint="Use QEMU 8.2 or newer, which opens it read-only, or give each fork its own: --memory-policy clone.",
        )


def _require_held(hypervisor: Hypervisor) -> None:
    """A descriptor that cannot write is no obstacle to who may open the file anew, by /proc/self/fd: root, and its owner."""
    if config.confinement_wanted() and confinement.why_no_landlock() is None:
        return
    why = why_no_vmm_users(hypervisor)
    if why is None:
        return
    if config.confinement_wanted():
        why = f"{confinement.why_no_landlock()}, and its VMMs have no users of their own: {why}"
    raise UnsupportedError(
        f"Forks cannot share memory here: one whose VMM was taken over could write what the others map ({why}).",
        capability=CAPABILITY,
        why=why,
        hint="`ramet doctor` says what confines VMMs here. Or give each fork a memory of its own: --memory-policy clone.",
    )


def require_unwritten(snapshot: SnapshotPaths) -> None:
    """Refuse to share a file that somebody has open for writing: an instance without reflinks may run from its own snapshot.

    Raises:
        ConflictError: if somebody has.
    """
    with host_errors(f"see who writes {snapshot.memory}"):
        fd = os.open(snapshot.memory, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            alone = leases.nobody_writes(fd)
        finally:
            os.close(fd)
    if not alone:
        raise ConflictError(
            f"The memory of snapshot {snapshot.dir.name} cannot be shared: a process has it open for writing.",
            hint="Put the instance that runs from it to standby and fork that, or use --memory-policy clone.",
        )


def open_to_forks(store: Store, snapshot: SnapshotPaths, manifest: Manifest) -> None:
    """Let the VMMs of forks, each a user of its own, read a snapshot that none of them owns. The instance that it was taken of
    must not be waking from it: its VMM may own these files while it starts.

    Raises:
        HostError: if the file system does not know groups.
    """
    reads_files = store.driver(manifest.vmm_build.hypervisor).opens_memory_read_only
    if os.geteuid() == 0 and reads_files and config.vmm_users_wanted():
        with host_errors(f"let forks read {snapshot.dir}"):
            ownership.share((snapshot.memory, snapshot.vmstate), user_number(manifest.instance_id))


@contextmanager
def copy_in_ram(store: Store, snapshot: SnapshotPaths, manifest: Manifest) -> Iterator[tuple[Path, CopyInRam]]:
    """The sealed copy in RAM of a snapshot's memory, by a path that is good for the block: what a live fork maps, or a new one.

    A new one is found by others once the record says which it is; until the block ends they wait.

    Raises:
        LockedError: if one is made for longer than ``COPY_IN_RAM_TIMEOUT_S``.
        UnsupportedError: if this kernel cannot seal it.
        RoomError: if there is not enough memory for it.
    """
    with ExitStack() as stack:
        at_work = stack.enter_context(ExitStack())
        key = f"snapshot-{manifest.id}-template"  # as other versions call it: the lock is the same for all
        at_work.enter_context(locked(store.paths.locks, key, timeout_s=COPY_IN_RAM_TIMEOUT_S))
        found = _of_a_live_fork(store, manifest)
        if found is not None:
            fd, one = found
            stack.callback(os.close, fd)
            at_work.close()
        else:
            _require_room(snapshot)
            fd, one = stack.enter_context(copies_in_ram.made(snapshot))
        yield Path(f"/proc/self/fd/{fd}"), one


def _of_a_live_fork(store: Store, manifest: Manifest) -> tuple[int, CopyInRam] | None:
    for record in store.readable_records()[0]:
        one, vmm = record.copy_in_ram, record.vmm
        if one is None or vmm is None or one.snapshot_id != manifest.id or not process.is_alive(vmm):
            continue
        fd = copies_in_ram.opened(one, vmm, size_bytes=manifest.memory.size_bytes)
        if fd is not None:
            return fd, one
    return None


def _require_room(snapshot: SnapshotPaths) -> None:
    """Too much of it would not fail: the kernel would kill somebody."""
    with host_errors(f"see whether {snapshot.memory} fits into memory"):
        needed, free = snapshot.memory.stat().st_blocks * 512, memory.available_bytes()
    if needed > free - KEPT_BYTES:
        raise RoomError(
            f"The memory of snapshot {snapshot.dir.name} takes {needed // MIB} MiB to share, and {free // MIB} MiB are free.",
            hint="Free some, or use QEMU 8.2 or newer, which shares the file itself.",
            fits=0,
            wanted=1,
        )
