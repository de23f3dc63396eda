"""restore: wake from a snapshot; roll back to one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ramet.errors import ConfigError, CorruptError, StateError, UnsupportedError, host_errors
from ramet.hypervisors.base import LaunchSpec
from ramet.instances import console_log, guest, live_files, naming, sharing, snapshot_check
from ramet.instances.boot import launch_spec
from ramet.instances.context import Locked, Store, snapshot_of
from ramet.instances.observe import end_vmm, exclusive, is_live
from ramet.instances.power import reached
from ramet.model import CopyInRam, Failure, InstanceRecord, Manifest, State, VmmProcess
from ramet.paths import SnapshotPaths
from ramet.phases import phase
from ramet.signals import signals_held
from ramet.snapshots import manifest as manifests
from ramet.states import Verb, next_step, require
from ramet.store.chores import Kind
from ramet.store.derive import ANY_METHOD, REFLINK_ONLY, derive

MEMORY_LOST: Mapping[Failure | None, str] = {
    Failure.VMM_LOST: "its VMM was lost",
    Failure.GUEST_PANICKED: "its guest's kernel panicked",
}
"""The failures of an instance that ran, in words."""


def restore(
    store: Store, name: str, *, snapshot: str | None, discard_memory: bool, discard_disk: bool, verified: bool
) -> None:
    """Wake an instance from the snapshot that it sleeps on, or roll it back to ``snapshot``. ``verified``: the very files that
    the VMM maps and opens are compared with the snapshot's sums before a vCPU runs.

    If it fails, the VMM is reaped, sockets and the new live disk are gone, and the instance is what it was.

    Raises:
        StateError: in a state from which memory or disk would be lost without having been told so.
        IncompatibleError, CorruptError: if the snapshot cannot be loaded here; nothing was touched.
    """
    with exclusive(store, name) as instance:
        if snapshot is None and reached(store, instance, Verb.RESTORE):
            return
        if instance.record.state is State.PARKED:
            require(Verb.RESTORE, instance.record, name=name)  # its way to run is the claim
        chosen = _choose(store, instance, snapshot, discard_memory=discard_memory, discard_disk=discard_disk)
        before = instance.record
        with collecting(store, before, chosen), store.reading(chosen) as paths:
            manifest = check(instance, paths)
            if verified and is_live(before):  # before it is given up for what may be damaged
                snapshot_check.require_intact(paths, manifest)
            if is_live(before):
                _end_live(instance)
            with instance.pending("restore"):
                store.say(f"{name}: restoring")
                wake(instance, paths, manifest, verified=verified)


@contextmanager
def collecting(store: Store, before: InstanceRecord, chosen: str) -> Iterator[None]:
    """When the block has ended, in whatever way, delete those snapshots of ``before`` that nothing references any more. If it has
    failed, ``chosen`` stays: a live VM may have been given up for it, and it is all that is left.
    """
    needless = set(before.references) - {chosen}
    with store.ended_if_killed(Kind.COLLECT, *needless) as chore:
        try:
            yield
            needless.add(chosen)
        finally:
            with signals_held():
                store.collect(*needless, chore=chore)


def _choose(store: Store, instance: Locked, snapshot: str | None, *, discard_memory: bool, discard_disk: bool) -> str:
    record = instance.record
    name = record.name
    if snapshot is not None:
        chosen = store.find_snapshot(snapshot)
        if is_live(record) and not (discard_memory and discard_disk):
            raise StateError(
                f"Cannot roll {name!r} back: it is {record.state.value}, and would lose its memory and its disk.",
                actual=record.state.value,
                required=[State.STANDBY.value, State.STOPPED.value, State.FAILED.value],
                hint="If that is what you want, add --discard-memory --discard-disk.",
            )
        return chosen
    if record.state is State.FAILED and record.failure in MEMORY_LOST and record.snapshot is not None:
        if discard_disk:
            return record.snapshot
        if record.pool is not None:
            raise StateError(
                f"Cannot restore {name!r}: it waited in a pool, and its VMM was lost. Its workload had not run: nothing is lost.",
                actual=record.state.value,
                required=[State.STANDBY.value],
                hint=f"Remove it (ramet rm {name}), or have it replaced: ramet pool {record.pool_source} --size N.",
            )
        raise StateError(
            f"Cannot restore {name!r}: {MEMORY_LOST[record.failure]}, and its disk is newer than its last snapshot.",
            actual=record.state.value,
            required=[State.STANDBY.value],
            hint=f"`ramet start {name}` boots that disk; `ramet restore {name} --discard-disk` rolls memory and disk back.",
        )
    if record.state is State.FAILED and discard_disk and record.snapshot is None:
        raise StateError(
            f"Cannot restore {name!r}: it has no sleep to go back to.",
            actual=record.state.value,
            required=[State.STANDBY.value],
            hint=next_step(record),
        )
    require(Verb.RESTORE, record, name=name)
    return snapshot_of(record)


def check(instance: Locked, paths: SnapshotPaths) -> Manifest:
    """The manifest of the snapshot that an instance is to wake from.

    Raises:
        ConfigError: if it is another's.
        IncompatibleError, CorruptError: if it cannot be loaded here.
    """
    manifest = manifests.load(paths)
    if not sharing.may_wake_from(instance.record, manifest):
        raise ConfigError(
            f"Snapshot {manifest.id} was taken of {_owner(instance, manifest)}, not of {instance.record.name!r}.",
            hint=f"To get a VM of its own from it: ramet fork snapshot:{manifest.id}",
        )
    manifests.check_compatible(manifest, instance.driver.build(instance.store.hardware(instance.record)))
    manifests.check_files(paths, manifest)
    return manifest


def _owner(instance: Locked, manifest: Manifest) -> str:
    """Names can be given again, and an earlier instance of the same name is another one."""
    name = naming.owner_name(instance.store, manifest)
    return repr(name) if name != instance.record.name else f"another {name!r}, which has the id {manifest.instance_id}"


def _end_live(instance: Locked) -> None:
    """Give up a live VM for a rollback: durable first, so that a kill in between never pairs old memory with its disk (H69)."""
    with signals_held():
        instance.change(state=State.STOPPED, mapped_snapshot=None, diff_base=None, snapshot=None)
        end_vmm(instance.paths, instance.record.vmm)
        instance.change(vmm=None)
        live_files.clear(instance.paths, keep_disk=True)


def let_run(instance: Locked, manifest: Manifest, copy_in_ram: CopyInRam | None) -> None:
    """Resume; identity acknowledged; record durable; and only then the thaw: no workload runs that a crash would forget.

    The verb is still marked as pending: the disk that a rollback had set aside is yet to go.
    """
    record, run_dir = instance.record, instance.paths.run
    generation = record.generation + 1
    with phase("resume"), instance.driver.connect(run_dir) as monitor:
        monitor.resume_vcpus()
    with guest.identified(run_dir, record, generation=generation) as agent:
        with phase("record"):
            note_woken(instance, manifest, copy_in_ram, state=State.RUNNING, generation=generation, pool=None)
        with phase("thaw"):
            guest.thaw_by(agent, run_dir)


def note_woken(
    instance: Locked,
    manifest: Manifest,
    copy_in_ram: CopyInRam | None,
    *,
    state: State,
    generation: int,
    pool: str | None,
) -> None:
    """Record that a VMM has loaded a snapshot, and that its guest has an identity.

    Raises:
        HostError: if that could not be written.
    """
    instance.change(
        state=state,
        failure=None,
        failure_detail=None,
        snapshot=manifest.id,
        mapped_snapshot=manifest.id,
        copy_in_ram=copy_in_ram,
        diff_base=manifest.id,
        needs_full=False,
        generation=generation,
        pool=pool,
    )


Then = Callable[[Locked, Manifest, CopyInRam | None], None]
"""What is done with a VMM that has loaded its snapshot, and what is recorded of it."""


def wake(
    instance: Locked, snapshot: SnapshotPaths, manifest: Manifest, *, verified: bool = False, then: Then = let_run
) -> None:
    """Start a VMM of an instance that has none, load a snapshot, and do ``then``. On failure the instance is what it was."""
    paths = instance.paths
    aside = live_files.set_aside_path(paths)
    keep_old_disk = instance.record.state is not State.STANDBY and paths.disk.exists()
    with host_errors(f"prepare {paths.work}"):
        if keep_old_disk:
            paths.disk.rename(aside)
        else:
            paths.disk.unlink(missing_ok=True)
        paths.memory.unlink(missing_ok=True)
    try:
        with phase("live files"):
            derive(snapshot.disk, paths.disk, allow=ANY_METHOD)
        with _memory_to_map(instance, snapshot, manifest) as (memory, copy_in_ram):
            spec = launch_spec(
                instance,
                memory=memory,
                boot=None,
                vmstate=snapshot.vmstate,
                snapshot_of=manifest.instance_id if _is_anothers(instance, manifest) else None,
                memory_is_sealed=copy_in_ram is not None,
            )
            if not verified:
                _load(instance, spec, manifest, copy_in_ram, before_run=lambda _vmm: None, then=then)
            else:
                instance.store.say(f"{instance.record.name}: comparing memory and disk with their sums")
                instead = snapshot_check.INSTEAD.format(name=instance.record.name)
                with snapshot_check.held_intact(
                    snapshot, manifest, instead=instead, memory=memory, disk=paths.disk
                ) as require_used:
                    _load(instance, spec, manifest, copy_in_ram, before_run=require_used, then=then)
    except BaseException:
        with signals_held():
            live_files.clear(paths, keep_disk=False)
            live_files.put_back_set_aside_disk(paths)
        raise
    live_files.drop_set_aside_disk(paths)


def _load(
    instance: Locked,
    spec: LaunchSpec,
    manifest: Manifest,
    copy_in_ram: CopyInRam | None,
    *,
    before_run: Callable[[VmmProcess], None],
    then: Then,
) -> None:
    asleep = instance.record
    said_bytes = console_log.size_bytes(instance.paths)
    vmm = instance.driver.load(spec)
    try:
        instance.change(durable=False, vmm=vmm, console_offset_bytes=said_bytes)
        before_run(vmm)
        then(instance, manifest, copy_in_ram)
    except BaseException:
        with signals_held():
            end_vmm(instance.paths, vmm)
            instance.put_back(asleep)  # it may say running already, if only the thaw has failed
        raise


def _is_anothers(instance: Locked, manifest: Manifest) -> bool:
    return manifest.instance_id != instance.record.id


@contextmanager
def _memory_to_map(
    instance: Locked, snapshot: SnapshotPaths, manifest: Manifest
) -> Iterator[tuple[Path, CopyInRam | None]]:
    """The memory file that the VMM maps; a copy in RAM, if the snapshot is another's and the VMM would open it for writing."""
    if _is_anothers(instance, manifest):
        sharing.require_enforced(instance.store, instance.record.hypervisor)
    if not _is_anothers(instance, manifest) or instance.driver.opens_memory_read_only:
        yield _file_to_map(instance, snapshot), None
    else:
        with sharing.copy_in_ram(instance.store, snapshot, manifest) as found:
            yield found


def _file_to_map(instance: Locked, snapshot: SnapshotPaths) -> Path:
    """The memory file that the VMM maps, where it is one of the store.

    The snapshot's own, where the VMM opens it read-only. QEMU before 8.2 opens it for writing even when it maps it privately:
    with reflinks it gets a clone, so that the snapshot's inode stays out of its reach; without, the instance's own snapshot where
    nobody else can use it, else a copy.
    """
    if instance.driver.opens_memory_read_only:
        return snapshot.memory
    own = instance.paths.memory
    with phase("live files"):
        try:
            derive(snapshot.memory, own, allow=REFLINK_ONLY)
        except UnsupportedError:
            if os.geteuid() == 0 and not _others_need(instance, snapshot.dir.name):
                return snapshot.memory
            derive(snapshot.memory, own, allow=ANY_METHOD)
    return own


def _others_need(instance: Locked, snapshot_id: str) -> bool:
    """Whether a name or another instance refers to the snapshot: then no VMM gets a writable descriptor on it."""
    try:
        return instance.store.is_needed_by_others(snapshot_id, instance.record.id)
    except CorruptError:
        return True  # what a damaged record refers to is unknown
