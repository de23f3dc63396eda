"""standby: capture, publish, point the record at it, and only then end the VMM; and the capture that others share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ramet import process
from ramet.errors import ConflictError, VmmError
from ramet.hypervisors.base import DirtySince, SavesDeviceState, SavesMemory
from ramet.instances import guest, live_files
from ramet.instances.context import Locked, Store
from ramet.instances.observe import exclusive
from ramet.instances.power import reached
from ramet.model import MIB, Manifest, SnapshotKind, State, VmmProcess
from ramet.paths import InstancePaths, SnapshotPaths
from ramet.snapshots import capture as captures
from ramet.snapshots.publish import describe, publish
from ramet.states import Verb, require
from ramet.store.layout import new_id, work_in_progress

log = logging.getLogger("ramet.standby")


def standby(store: Store, name: str) -> None:
    """Put an instance to sleep. If anything fails before its record points at the new snapshot, it runs on (or stays paused).

    Raises:
        StateError: if it neither runs nor is paused.
        HostError: NoSpaceError for a full disk, for example; the guest runs on and nothing was kept.
    """
    with exclusive(store, name) as instance:
        if reached(store, instance, Verb.STANDBY):
            return
        require(Verb.STANDBY, instance.record.state, name=name)
        before = instance.record
        with (
            store.collecting(before),
            instance.pending("standby"),
            instance.driver.connect(instance.paths.run) as monitor,
        ):
            store.say(f"{name}: going to standby")
            _sleep(store, instance, monitor)


def _sleep(store: Store, instance: Locked, monitor: SavesDeviceState | SavesMemory) -> None:
    record = instance.record
    was_paused = record.state is State.PAUSED
    vmm = record.vmm
    if vmm is None:
        raise ConflictError(f"{instance.record.name!r} has no VMM: its record is damaged.")
    if not was_paused:
        guest.freeze(monitor, instance.paths.run)
    with ExitStack() as held:
        try:
            with captured(instance, monitor) as (work, manifest), store.publishing(manifest.id):
                publish(work, store.paths.snapshot(manifest.id), manifest)
                held.enter_context(process.signals_held())
                instance.change(
                    state=State.STANDBY,
                    snapshot=manifest.id,
                    mapped_snapshot=None,
                    diff_base=None,
                    needs_full=False,
                )
        except BaseException:
            if store.read(record.id).state is not State.STANDBY and not was_paused:  # what is on disk is the truth
                with process.signals_held():
                    guest.unfreeze(monitor, instance.paths.run)
            raise
        # From here on the sleep is a fact; a kill leaves a paused VMM that the next command reaps.
        process.kill_and_wait(vmm)
        live_files.clear(instance.paths, keep_disk=False)
        instance.change(vmm=None, pending=None)


@contextmanager
def captured(instance: Locked, monitor: SavesDeviceState | SavesMemory) -> Iterator[tuple[Path, Manifest]]:
    """Capture a frozen VM into work in progress: yields the directory and the manifest, neither published yet."""
    store, record = instance.store, instance.record
    vmm = record.vmm
    if vmm is None:
        raise ConflictError(f"{record.name!r} has no VMM: its record is damaged.")
    if monitor.vcpus_running():
        raise VmmError(f"The vCPUs of {record.name!r} run: nothing was captured of a guest that changes meanwhile.")
    snapshot_id = new_id()
    with work_in_progress(store.paths, snapshot_id) as work:
        if isinstance(monitor, SavesMemory):
            result, base_id = _captured_by_vmm(instance, monitor, vmm, SnapshotPaths(dir=work))
        else:
            base_id = record.mapped_snapshot
            result = captures.capture(
                monitor,
                vmm,
                live=instance.paths,
                mapped_file=mapped_file(store, instance.paths, record.mapped_snapshot),
                into=SnapshotPaths(dir=work),
                base_is_empty=base_id is None,
            )
        if record.vmm_build is None:
            raise ConflictError(f"{record.name!r} does not know its VMM's build: its record is damaged.")
        manifest = describe(
            snapshot_id,
            record,
            record.vmm_build,
            result,
            kind=SnapshotKind.FULL if base_id is None else SnapshotKind.DIFF,
            parent=base_id,
        )
        yield work, manifest


def _captured_by_vmm(
    instance: Locked, monitor: SavesMemory, vmm: VmmProcess, into: SnapshotPaths
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
    )
    return result, base_id


def _is_whole(memory: Path, size_bytes: int) -> bool:
    """Firecracker empties a file of another size, writes the diff into it, and calls the result complete."""
    try:
        return memory.stat().st_size == size_bytes
    except FileNotFoundError:
        return False


def keep_as_base(instance: Locked, manifest: Manifest) -> None:
    """Note that the VMM lives on and that ``manifest``'s snapshot, which is published, is what its next diff is relative to."""
    if instance.driver.dirty_since is DirtySince.LAST_CAPTURE:
        with instance.store.collecting(instance.record):
            instance.change(diff_base=manifest.id, needs_full=False)


def mapped_file(store: Store, paths: InstancePaths, mapped_snapshot: str | None) -> Path:
    """The file that the VMM maps: its own under ``work/``, or, without reflinks, its own snapshot's."""
    if paths.memory.exists() or mapped_snapshot is None:
        return paths.memory
    return store.paths.snapshot(mapped_snapshot).memory
