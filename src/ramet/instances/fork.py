"""fork: new instances from a sleeping, stopped or running instance or from a snapshot. Each has its own inodes or, under the
memory policy ``share``, refers to the source's snapshot until its first sleep.

All or nothing: if one fork of several fails, those made before it are removed and the source is as it was.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import msgspec

from ramet.errors import ConflictError, NotFoundError, RametError, StateError, UnsupportedError
from ramet.hypervisors.base import DirtySince, Hardware
from ramet.instances import birth, choice, naming, sharing
from ramet.instances.batch import Batch, OnResult, all_or_nothing, wake
from ramet.instances.context import Store, snapshot_of
from ramet.instances.observe import exclusive, is_live, shared
from ramet.instances.taking import keep_as_base, take
from ramet.model import Ancestor, Hypervisor, InstanceRecord, Manifest, MemoryPolicy, Method, State
from ramet.paths import InstancePaths, SnapshotPaths
from ramet.phases import phase
from ramet.snapshots import manifest as manifests
from ramet.snapshots.publish import adopt, derive_snapshot, publish
from ramet.states import Verb, require
from ramet.store.derive import ANY_METHOD, derive
from ramet.store.layout import new_id, work_in_progress
from ramet.store.locks import locked

log = logging.getLogger("ramet.fork")


@dataclass(frozen=True, slots=True, kw_only=True)
class Forked:
    """What a fork made."""

    ids: tuple[str, ...]
    failures: Mapping[str, RametError]
    """By name; with ``partial`` alone."""
    left: Mapping[str, tuple[str, RametError]]
    """Of the failures, those that could not be removed again, by name: the id, and why."""
    source_pause_s: float | None
    method: Method | None


def fork(
    store: Store,
    source: str,
    names: Sequence[str],
    *,
    count: int | None,
    start: bool,
    hypervisor: Hypervisor | None = None,
    memory_policy: MemoryPolicy = MemoryPolicy.CLONE,
    partial: bool = False,
    on_result: OnResult = lambda _name, _error: None,
) -> Forked:
    """Fork ``source`` (an instance, or ``snapshot:ID-or-name``) into one or many; see ``Host.fork``."""
    for name in names:
        naming.check_new_name(name)
    pause_s = None
    with all_or_nothing(store) as announce:
        batch = Batch(
            store,
            announce=announce,
            wake=wake if start else None,
            partial=partial,
            on_result=on_result,
        )
        if source.startswith("snapshot:"):
            _from_snapshot(store, batch, store.find_snapshot(source), names, count, hypervisor, memory_policy)
        else:
            pause_s = _from_instance(store, batch, source, names, count, hypervisor, memory_policy)
        batch.start()
    return Forked(ids=batch.ids, failures=batch.failures, left=batch.left, source_pause_s=pause_s, method=batch.method)


def _require_same(source: str, made_by: Hypervisor, asked: Hypervisor | None) -> None:
    """Memory and device state are one VMM's own.

    Raises:
        UnsupportedError: if another one is asked for.
    """
    if asked in (None, made_by):
        return
    raise UnsupportedError(
        f"Cannot fork {source!r} into {asked}: its memory and device state are {made_by}'s, which no other VMM can load.",
        capability="fork across hypervisors",
        why="device states have no common format",
        hint=f"A disk alone can change the hypervisor: fork a stopped instance, which boots afresh, with --hypervisor {asked}.",
    )


def _from_snapshot(
    store: Store,
    batch: Batch,
    snapshot_id: str,
    names: Sequence[str],
    count: int | None,
    hypervisor: Hypervisor | None,
    memory_policy: MemoryPolicy,
) -> None:
    with not_waking(store, snapshot_id, memory_policy), store.reading(snapshot_id) as paths:
        manifest = manifests.load(paths)
        _require_same(f"snapshot:{snapshot_id}", manifest.vmm_build.hypervisor, hypervisor)
        owner = owner_of(store, manifest)
        chosen = naming.names_of_forks(store, owner.name, names, count)
        from_published(store, batch, new_records(store, owner, chosen, manifest), paths, manifest, memory_policy)


def _from_instance(
    store: Store,
    batch: Batch,
    source: str,
    names: Sequence[str],
    count: int | None,
    hypervisor: Hypervisor | None,
    memory_policy: MemoryPolicy,
) -> float | None:
    """Returns for how long a running source was paused."""
    with shared(store, source) as record:
        require(Verb.FORK, record, name=source)
        chosen = naming.names_of_forks(store, record.name, names, count)
        if record.state is State.STOPPED:
            _require_memory(source, record.state, memory_policy)
            _from_disk(store, batch, _with_vmm(store, record, hypervisor), chosen)
            return None
        _require_same(source, record.hypervisor, hypervisor)
        if record.state is State.STANDBY:
            with store.reading(snapshot_of(record)) as paths:
                manifest = manifests.load(paths)
                from_published(
                    store, batch, new_records(store, record, chosen, manifest), paths, manifest, memory_policy
                )
            return None
        if memory_policy is MemoryPolicy.SHARE:
            sharing.require_enforced(store, record.hypervisor)
    return _from_live(store, batch, source, chosen, memory_policy)


@contextmanager
def not_waking(store: Store, snapshot_id: str, memory_policy: MemoryPolicy) -> Iterator[None]:
    """Keep the instance that a snapshot was taken of from waking, if its forks are to share it (``sharing.open_to_forks``)."""
    with ExitStack() as stack:
        if memory_policy is MemoryPolicy.SHARE:
            owner = manifests.load(store.paths.snapshot(snapshot_id)).instance_id
            if store.paths.instance(owner).dir.is_dir():
                stack.enter_context(locked(store.paths.locks, f"instance-{owner}", exclusive=False))
        yield


def _require_memory(source: str, state: State, memory_policy: MemoryPolicy) -> None:
    """Forks of a stopped source boot afresh, each with a memory of its own.

    Raises:
        StateError: if they are to share one.
    """
    if memory_policy is MemoryPolicy.SHARE:
        raise StateError(
            f"Forks of {source!r} have no memory to share: it is stopped.",
            actual=state.value,
            required=[State.STANDBY.value, State.RUNNING.value, State.PAUSED.value],
            hint="Leave out --memory-policy, or start it first.",
        )


def from_published(
    store: Store,
    batch: Batch,
    records: Sequence[InstanceRecord],
    files: SnapshotPaths,
    manifest: Manifest,
    memory_policy: MemoryPolicy,
) -> None:
    """Make the forks of ``records`` from a published snapshot, which is kept meanwhile.

    Raises:
        UnsupportedError: if they are to share memory, and nothing here would refuse a write to it.
    """
    manifests.check_files(files, manifest)
    if memory_policy is MemoryPolicy.SHARE:
        sharing.require_enforced(store, manifest.vmm_build.hypervisor)
        sharing.require_unwritten(files)
        sharing.open_to_forks(store, files, manifest)
        _share(store, batch, records, manifest)
    else:
        _derive_all(store, batch, records, files, manifest)


def _share(store: Store, batch: Batch, records: Sequence[InstanceRecord], manifest: Manifest) -> None:
    """Forks that refer to a published snapshot, which is kept meanwhile, and that they may read."""
    sharing_ones = [
        msgspec.structs.replace(record, snapshot=manifest.id, memory_policy=MemoryPolicy.SHARE) for record in records
    ]

    def make_one(record: InstanceRecord, _is_last: bool) -> None:
        with (
            phase("derive"),
            locked(store.paths.locks, f"instance-{record.id}"),
            work_in_progress(store.paths, record.id) as work,
        ):
            birth.make_directories(work)
            birth.establish(store, work, record)

    batch.make(sharing_ones, make_one)


def _from_live(
    store: Store, batch: Batch, source: str, names: tuple[str, ...], memory_policy: MemoryPolicy
) -> float | None:
    """Pause the source, capture it, let it run on, and make the forks from the capture; returns how long it paused, if so."""
    with ExitStack() as lock:
        instance = lock.enter_context(exclusive(store, source))
        record = instance.record
        if not is_live(record):
            raise StateError(
                f"Cannot fork {source!r}: it became {record.state.value} meanwhile.",
                actual=record.state.value,
                required=[State.RUNNING.value, State.PAUSED.value],
                hint="Try again.",
            )
        with ExitStack() as stack:
            taken, pause_s = take(instance, "fork", stack)
            manifest = taken.summed_up()
            files, share = taken.files, memory_policy is MemoryPolicy.SHARE
            is_base = instance.driver.dirty_since is DirtySince.LAST_CAPTURE
            # The source's next diff may need it, and forks that share it do, if any is made.
            is_kept = share or is_base
            if is_kept:
                files = store.paths.snapshot(manifest.id)
                stack.enter_context(store.publishing(manifest.id, may_be_unneeded=not is_base))
                publish(taken.files.dir, files, manifest)
                keep_as_base(instance, manifest)
            if share:
                sharing.open_to_forks(store, files, manifest)
            if not is_base:
                lock.close()  # the capture has inodes of its own, under a lock of its own: the source is free
            records = new_records(store, record, names, manifest)
            if share:
                _share(store, batch, records, manifest)
            else:
                _derive_all(store, batch, records, files, manifest, last_takes_files=not is_kept)
            return pause_s


def _derive_all(
    store: Store,
    batch: Batch,
    records: Sequence[InstanceRecord],
    files: SnapshotPaths,
    manifest: Manifest,
    *,
    last_takes_files: bool = False,
) -> None:
    def derive_one(record: InstanceRecord, is_last: bool) -> Method | None:
        return _derive_one(store, record, files, manifest, take_files=is_last and last_takes_files)

    batch.make(records, derive_one)


def _derive_one(
    store: Store, record: InstanceRecord, files: SnapshotPaths, manifest: Manifest, *, take_files: bool
) -> Method | None:
    """One fork: its snapshot is published first, then the instance that refers to it."""
    assert record.snapshot is not None
    final = store.paths.snapshot(record.snapshot)
    with phase("derive"), locked(store.paths.locks, f"instance-{record.id}"), store.publishing(record.snapshot):
        if take_files:
            mine = adopt(
                manifest,
                fork=record,
                memory=manifest.memory.method,
                disk=manifest.disk.method,
                vmstate=manifest.vmstate.method,
            )
            publish(files.dir, final, mine)
        else:
            with work_in_progress(store.paths, f"{record.snapshot}-fork") as work:
                mine = derive_snapshot(files, manifest, work, fork=record)
                publish(work, final, mine)
        with work_in_progress(store.paths, record.id) as work:
            birth.make_directories(work)
            birth.establish(store, work, record)
    return mine.memory.method


def _from_disk(store: Store, batch: Batch, source: InstanceRecord, names: Sequence[str]) -> None:
    """Forks of a stopped source: its disk alone; they boot afresh."""
    live = store.paths.instance(source.id).disk
    if not live.exists():
        raise ConflictError(f"{source.name!r} has no disk to fork.")

    def derive_one(record: InstanceRecord, _is_last: bool) -> Method:
        with (
            locked(store.paths.locks, f"instance-{record.id}"),
            work_in_progress(store.paths, record.id) as work,
        ):
            birth.make_directories(work)
            method = derive(live, InstancePaths(dir=work).disk, allow=ANY_METHOD, durable=True)
            birth.establish(store, work, record)
        return method

    batch.make(new_records(store, source, names, None), derive_one)


def _with_vmm(store: Store, record: InstanceRecord, hypervisor: Hypervisor | None) -> InstanceRecord:
    """The record of a stopped source as one of another hypervisor would be.

    Raises:
        UnsupportedError: if that does not work on this host.
    """
    if hypervisor in (None, record.hypervisor):
        return record
    chosen = choice.choose(hypervisor, None)
    hardware = Hardware(memory_mib=record.memory_mib, cpus=record.cpus, accelerator=chosen.accelerator)
    build = store.driver(chosen.hypervisor).build(hardware)
    return msgspec.structs.replace(record, hypervisor=chosen.hypervisor, vmm_build=build)


def new_records(
    store: Store, source: InstanceRecord, names: Sequence[str], manifest: Manifest | None
) -> list[InstanceRecord]:
    """The records of forks that are to be made of ``source``, from a snapshot or from its disk alone."""
    ids = birth.new_ids(store, len(names))
    return [_new_record(source, one, name, manifest) for one, name in zip(ids, names, strict=True)]


def _new_record(source: InstanceRecord, instance_id: str, name: str, manifest: Manifest | None) -> InstanceRecord:
    ancestor = Ancestor(
        instance_id=source.id, name=source.name, snapshot_id=manifest.id if manifest is not None else None
    )
    return InstanceRecord(
        id=instance_id,
        name=name,
        state=State.STOPPED if manifest is None else State.STANDBY,
        created_at_unix_s=time.time(),
        hypervisor=source.hypervisor,
        image=source.image,
        memory_mib=source.memory_mib,
        cpus=source.cpus,
        disk_bytes=source.disk_bytes,
        machine_id=uuid.uuid4().hex,
        lineage=(*source.lineage, ancestor),
        snapshot=new_id() if manifest is not None else None,
        vmm_build=manifest.vmm_build if manifest is not None else source.vmm_build,
        generation=source.generation,
    )


def owner_of(store: Store, manifest: Manifest) -> InstanceRecord:
    """The record of the instance that a snapshot was taken of; made up from the manifest if it is gone."""
    with suppress(NotFoundError):
        return store.read(manifest.instance_id)
    return InstanceRecord(
        id=manifest.instance_id,
        name=manifest.instance_name,
        state=State.STANDBY,
        created_at_unix_s=manifest.created_at_unix_s,
        hypervisor=manifest.vmm_build.hypervisor,
        image=manifest.image,
        memory_mib=manifest.memory_mib,
        cpus=manifest.cpus,
        disk_bytes=manifest.disk.size_bytes,
        machine_id=uuid.uuid4().hex,
        vmm_build=manifest.vmm_build,
    )
