"""A capture of one instance, into work in progress: what standby, fork and snapshot share."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ramet import process
from ramet.errors import CorruptError, HostError, NotFoundError, VmmDiedError, VmmError, host_errors
from ramet.hypervisors.base import DirtySince, SavesDeviceState, SavesMemory
from ramet.instances import guest, live_files
from ramet.instances.context import Locked, Store, vmm_of
from ramet.linux import procfs
from ramet.model import MIB, InstanceRecord, Manifest, SnapshotKind, State, VmmProcess
from ramet.paths import SnapshotPaths
from ramet.signals import signals_held
from ramet.snapshots import capture as captures
from ramet.snapshots import copies_in_ram
from ramet.snapshots import manifest as manifests
from ramet.snapshots import memory as memories
from ramet.snapshots.dirty import reading
from ramet.snapshots.publish import add_sums, describe
from ramet.snapshots.scatter import Scatter
from ramet.store.layout import new_id, work_in_progress

log = logging.getLogger("ramet.capture")


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A capture in work in progress, not published yet. The VM may run on."""

    files: SnapshotPaths
    manifest: Manifest
    base: SnapshotPaths | None
    dirty: tuple[tuple[int, int], ...] | None

    def summed_up(self) -> Manifest:
        """The manifest, once memory and disk have their sums: the guest need not wait for that.

        Raises:
            HostError: for errors of the host.
        """
        return add_sums(self.files, self.manifest, base=self.base, dirty=self.dirty)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Where a capture goes: it is gone with the block that made it, unless it was published."""

    snapshot_id: str
    files: SnapshotPaths
    memory: memories.Begun | None
    guest_waits: bool
    """To run on."""


def take(instance: Locked, verb: str, stack: ExitStack) -> tuple[Taken, float | None]:
    """Capture a guest that is to run on, or is paused; returns also for how many seconds one that ran was paused for that. What
    was captured is in work in progress until ``stack`` closes, unless it is published.

    Raises:
        CorruptError, GuestError, HostError, VmmError: as ``captured``. The guest runs on, even if its own disk had no room
            meanwhile.
    """
    runs = instance.record.state is State.RUNNING
    with instance.driver.connect(instance.paths.run) as monitor:
        try:
            work = stack.enter_context(begun(instance, monitor, guest_waits=True))
            with instance.pending(verb):
                began = time.monotonic()
                with guest.frozen(monitor, instance.paths.run, already=not runs):
                    taken = captured(instance, monitor, work)
                return taken, time.monotonic() - began if runs else None
        except BaseException:
            stack.close()  # there is room again
            if runs:
                guest.run_on(monitor)
            raise


@contextmanager
def begun(instance: Locked, monitor: SavesDeviceState | SavesMemory, *, guest_waits: bool) -> Iterator[Work]:
    """Make place for a capture. What can be copied of the memory of a guest that runs, and will run on, is copied already: it
    waits for less of it in the end.

    Raises:
        CorruptError, HostError, VmmError: as ``captured``.
    """
    snapshot_id = new_id()
    with work_in_progress(instance.store.paths, snapshot_id) as directory:
        files = SnapshotPaths(dir=directory)
        memory = None
        if guest_waits and instance.record.state is State.RUNNING and not isinstance(monitor, SavesMemory):
            memory = _memory_ahead(instance, files.memory)
        yield Work(snapshot_id=snapshot_id, files=files, memory=memory, guest_waits=guest_waits)


def _memory_ahead(instance: Locked, into: Path) -> memories.Begun:
    store, record = instance.store, instance.record
    vmm = vmm_of(record)
    with _copy_in_ram(store, record, vmm) as copy_in_ram:
        return memories.begin(
            vmm,
            mapped_file=_mapped_file(store, record, vmm),
            into=into,
            scatter=_scatter(instance, record.mapped_snapshot, guest_waits=True),
            copy_in_ram=copy_in_ram,
            guest_runs=True,
        )


def captured(instance: Locked, monitor: SavesDeviceState | SavesMemory, work: Work) -> Taken:
    """Capture a frozen VM.

    Raises:
        CorruptError: if somebody has deleted the file that its VMM maps.
        HostError: for errors of the host (NoSpaceError for a full disk).
        VmmError: if the VMM refused, or is not mapped as expected.
    """
    store, record = instance.store, instance.record
    vmm = vmm_of(record)
    if monitor.vcpus_running():
        raise VmmError(f"The vCPUs of {record.name!r} run: nothing was captured of a guest that changes meanwhile.")
    try:
        if isinstance(monitor, SavesMemory):
            result, base_id = _captured_by_vmm(instance, monitor, vmm, work.files, guest_waits=work.guest_waits)
        else:
            base_id = record.mapped_snapshot
            with _copy_in_ram(store, record, vmm) as copy_in_ram:
                result = captures.capture(
                    monitor,
                    vmm,
                    live=instance.paths,
                    mapped_file=_mapped_file(store, record, vmm),
                    copy_in_ram=copy_in_ram,
                    into=work.files,
                    base_is_empty=base_id is None,
                    scatter=_scatter(instance, base_id, guest_waits=work.guest_waits),
                    begun=work.memory,
                )
    except BaseException:
        with signals_held():  # there is room again before the guest runs on: it may need it
            for path in (work.files.memory, work.files.disk, work.files.vmstate):
                try:
                    path.unlink(missing_ok=True)
                except OSError as err:  # what ended it is told; their directory goes later, and says if it cannot
                    log.warning("%s takes room while the guest runs on: %s", path, err.strerror)
        raise
    if record.vmm_build is None:
        raise CorruptError(f"{record.name!r} does not know its VMM's build: its record is damaged.")
    manifest = describe(
        work.snapshot_id,
        record,
        record.vmm_build,
        result,
        kind=SnapshotKind.FULL if base_id is None else SnapshotKind.DIFF,
        parent=base_id,
    )
    base = store.paths.snapshot(base_id) if base_id is not None else None
    return Taken(files=work.files, manifest=manifest, base=base, dirty=result.dirty)


def keep_as_base(instance: Locked, manifest: Manifest) -> None:
    """Note that the VMM lives on and that ``manifest``'s snapshot, which is published, is what its next diff is relative to."""
    if instance.driver.dirty_since is DirtySince.LAST_CAPTURE:
        with instance.store.collecting(instance.record):
            instance.change(diff_base=manifest.id, needs_full=False)


def _mapped_file(store: Store, record: InstanceRecord, vmm: VmmProcess) -> Path:
    """What the VMM maps.

    Raises:
        CorruptError: if somebody has deleted it: the VMM has it still, and no capture can be made of it.
        VmmDiedError: if the VMM has ended.
    """
    found = live_files.mapped_file(store.paths, record)
    if live_files.maps_copy_in_ram(record):
        return found
    with host_errors(f"read {found}"):
        is_there = found.exists()
    with reading(vmm):
        if is_there and procfs.mappings_of_file(vmm.pid, found):
            return found
    if not process.is_alive(vmm):
        raise VmmDiedError(f"The VMM (process {vmm.pid}) ended before its memory was read.")
    own = store.paths.instance(record.id).memory
    lost = own if is_there else found  # the snapshot's, which is looked at in the place of its own
    raise CorruptError(
        f"{record.name!r} runs on a memory file that somebody has deleted ({lost}): its memory cannot be captured.",
        hint=f"Its guest is as it was. `ramet stop {record.name}` keeps its disk, and `ramet cp`, while it runs, what is in RAM.",
    )


@contextmanager
def _copy_in_ram(store: Store, record: InstanceRecord, vmm: VmmProcess) -> Iterator[memories.OpenCopyInRam | None]:
    """The copy in RAM that the VMM maps; None if it maps none.

    Raises:
        VmmDiedError: if the VMM has it open no more.
    """
    one = record.copy_in_ram
    if one is None or not live_files.maps_copy_in_ram(record):
        yield None
        return
    size_bytes = record.memory_mib * MIB
    fd = copies_in_ram.opened(one, vmm, size_bytes=size_bytes)
    if fd is None:
        raise VmmDiedError(f"The VMM of {record.name!r} does not have its memory open any more.")
    try:
        memory = store.paths.snapshot(one.snapshot_id).memory
        is_same = copies_in_ram.is_unchanged(one, memory, size_bytes=size_bytes)
        if not is_same:
            log.warning("%s was changed: the memory of %s is copied from RAM", memory, record.name)
        yield memories.OpenCopyInRam(fd=fd, same=memory if is_same else None)
    finally:
        os.close(fd)


def _captured_by_vmm(
    instance: Locked, monitor: SavesMemory, vmm: VmmProcess, into: SnapshotPaths, *, guest_waits: bool
) -> tuple[captures.Captured, str | None]:
    """A capture that the VMM writes itself; and the snapshot whose memory it is a diff of, None if it is whole."""
    store, record = instance.store, instance.record
    base_id = None if record.needs_full else record.diff_base
    base = None if base_id is None else store.paths.snapshot(base_id).memory
    size_bytes = record.memory_mib * MIB
    if base is not None and not _is_whole(base, size_bytes):
        log.warning(
            "%s: its next diff is relative to snapshot %s, whose memory is gone: taking all", record.name, base_id
        )
        base_id = base = None
    result = captures.capture_by_vmm(
        monitor,
        vmm,
        live=instance.paths,
        base=base,
        size_bytes=size_bytes,
        # The first one after a boot is relative to memory full of zeros, which a file of one hole is.
        diff=base is not None
        or (record.mapped_snapshot is None and record.diff_base is None and not record.needs_full),
        into=into,
        before_request=lambda: instance.change(needs_full=True),
        scatter=_scatter(instance, base_id, guest_waits=guest_waits),
    )
    return result, base_id


def _scatter(instance: Locked, base_id: str | None, *, guest_waits: bool) -> Scatter:
    """Of the memory file of a base. What the source of a fork that shares it has scattered is not the fork's; a base that cannot
    be read is found out by whoever needs more of it than this figure.
    """
    pieces = 0
    if base_id is not None:
        with suppress(CorruptError, NotFoundError, HostError):
            manifest = manifests.load(instance.store.paths.snapshot(base_id))
            pieces = manifest.memory.pieces if manifest.instance_id == instance.record.id else 0
    return Scatter(pieces=pieces, guest_waits=guest_waits)


def _is_whole(memory: Path, size_bytes: int) -> bool:
    """Firecracker empties a file of another size, writes the diff into it, and calls the result complete."""
    try:
        return memory.stat().st_size == size_bytes
    except FileNotFoundError:
        return False
