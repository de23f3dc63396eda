"""pool: forks that wait, loaded and paused, to be claimed.

A pool is nothing but its parked forks: each record names the source whose pool it is in. There is no daemon: ``pool`` fills up
to a size and ends, and a claim (``claim.py``) takes one of what is there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace

import msgspec

from ramet.config import FORKS_MAX
from ramet.errors import ConfigError, CorruptError, LockedError, NotFoundError, RoomError, StateError
from ramet.instances import fork, guest, observe, restore
from ramet.instances.batch import Batch, OnResult
from ramet.instances.context import Locked, Store, snapshot_of
from ramet.instances.delete import take_away
from ramet.linux import procfs
from ramet.model import Ancestor, InstanceRecord, Manifest, MemoryPolicy, PoolInfo, State, Template
from ramet.paths import SnapshotPaths
from ramet.snapshots import manifest as manifests
from ramet.states import Verb, require
from ramet.store.locks import locked

SNAPSHOT, DELETED = "snapshot", "deleted"
"""What a source is that is no instance (any more)."""
FILL = "pool"
"""``pending`` of a fork while it is being parked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Whose pool it is."""

    id: str
    """The instance's, or the snapshot's."""
    label: str
    """As it was given, or would be."""
    name: str
    """Of the instance, or of the one that the snapshot was taken of: what forks are called after."""
    state: str
    """Of the instance; ``deleted``, or ``snapshot`` if it is none."""
    snapshot: str | None
    """Whose forks can be claimed."""
    why: str | None
    """If there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Members:
    """The forks of a pool, oldest first, as they are now."""

    parked: tuple[InstanceRecord, ...] = ()
    """Those that can be claimed, and those in the making that will be."""
    stale: tuple[InstanceRecord, ...] = ()
    lost: tuple[InstanceRecord, ...] = ()

    @property
    def all(self) -> tuple[InstanceRecord, ...]:
        return (*self.parked, *self.stale, *self.lost)


def find(store: Store, source: str) -> Source:
    """The source of a pool, which need not have one: an instance, or ``snapshot:ID-or-name``.

    Raises:
        NotFoundError: if there is none.
    """
    if source.startswith("snapshot:"):
        snapshot_id = store.find_snapshot(source)
        name = manifests.load(store.paths.snapshot(snapshot_id)).instance_name
        return Source(id=snapshot_id, label=source, name=name, state=SNAPSHOT, snapshot=snapshot_id, why=None)
    return _of_instance(observe.look(store, store.read(store.find(source))))


@contextmanager
def kept(store: Store, source: str) -> Iterator[Source]:
    """The same, as it is and stays for the block: an instance neither wakes nor sleeps meanwhile, nor is a snapshot deleted.

    Raises:
        NotFoundError: if there is none.
    """
    if source.startswith("snapshot:"):
        snapshot_id = store.find_snapshot(source)
        with store.reading(snapshot_id):
            yield replace(find(store, f"snapshot:{snapshot_id}"), label=source)
        return
    with observe.shared(store, source) as record:
        yield _of_instance(record)


def _of_instance(record: InstanceRecord) -> Source:
    asleep = record.state is State.STANDBY
    why = None if asleep else f"{record.name} is {record.state.value}"
    snapshot = record.snapshot if asleep else None
    return Source(
        id=record.id, label=record.name, name=record.name, state=record.state.value, snapshot=snapshot, why=why
    )


def is_member(record: InstanceRecord) -> bool:
    """Whether it waits in a pool, or was lost there."""
    return record.pool is not None and record.state in (State.PARKED, State.FAILED)


def is_fresh(record: InstanceRecord, source: Source) -> bool:
    """Whether it is parked, and of what the source is now."""
    began_from = record.lineage[-1].snapshot_id if record.lineage else None
    is_its = record.state is State.PARKED and record.pool == source.id
    return is_its and source.snapshot is not None and began_from == source.snapshot


def members(store: Store, source: Source) -> Members:
    """All forks of a source's pool."""
    return _sorted(source, _candidates(store))


def _candidates(store: Store) -> list[InstanceRecord]:
    found = []
    for record in store.readable_records()[0]:
        if is_member(record):
            with suppress(NotFoundError):  # removed meanwhile
                seen = observe.look(store, record)
                if is_member(seen):
                    found.append(seen)
    return found


def _sorted(source: Source, candidates: Sequence[InstanceRecord]) -> Members:
    ours = [record for record in candidates if record.pool == source.id]
    return Members(
        parked=tuple(record for record in ours if is_fresh(record, source)),
        stale=tuple(record for record in ours if record.state is State.PARKED and not is_fresh(record, source)),
        lost=tuple(record for record in ours if record.state is State.FAILED),
    )


def show(store: Store, source: str) -> PoolInfo:
    """The pool of one source; empty if it has none.

    Raises:
        NotFoundError: if there is no such source, and no pool of one that is gone.
    """
    candidates = _candidates(store)
    found = _find_or_gone(store, source, candidates)
    return _info(found, _sorted(found, candidates))


def all_pools(store: Store) -> list[PoolInfo]:
    """Every pool that has forks."""
    candidates = _candidates(store)
    found = []
    for source_id in dict.fromkeys(record.pool for record in candidates if record.pool is not None):
        source = _by_id(store, source_id, candidates)
        found.append(_info(source, _sorted(source, candidates)))
    return found


def _by_id(store: Store, source_id: str, candidates: Sequence[InstanceRecord]) -> Source:
    """The source of the pool of these. One that is gone goes by its id: another instance may have its name by now."""
    parent = _parent(source_id, candidates)
    if parent.instance_id != source_id:
        is_there = store.paths.snapshot(source_id).dir.is_dir()
        return Source(
            id=source_id,
            label=f"snapshot:{source_id}",
            name=parent.name,
            state=SNAPSHOT if is_there else DELETED,
            snapshot=source_id if is_there else None,
            why=None if is_there else "the snapshot was deleted",
        )
    try:
        return _of_instance(observe.look(store, store.read(source_id)))
    except NotFoundError:
        why = f"{parent.name} ({source_id}) was deleted"
    except CorruptError as err:
        why = err.message
    return Source(id=source_id, label=source_id, name=parent.name, state=DELETED, snapshot=None, why=why)


def _parent(source_id: str, candidates: Sequence[InstanceRecord]) -> Ancestor:
    return next(record.lineage[-1] for record in candidates if record.pool == source_id)


def _find_or_gone(store: Store, source: str, candidates: Sequence[InstanceRecord]) -> Source:
    try:
        return find(store, source)
    except NotFoundError as err:
        ids = list(dict.fromkeys(record.pool for record in candidates if record.pool is not None))
        for source_id in ids:
            one = _by_id(store, source_id, candidates)
            if source in (one.label, one.id):
                return one
        called = [one for one in ids if _parent(one, candidates).name == source]
        if not called:
            raise
        left = ", ".join(f"`ramet pool {one}`" for one in called)
        hint = f"Of one that was deleted, parked forks are left: {left}; --size 0 removes them."
        raise NotFoundError(err.message, hint=hint) from err


def _info(source: Source, found: Members) -> PoolInfo:
    return PoolInfo(
        source=source.label,
        source_id=source.id,
        snapshot=source.snapshot,
        why=source.why,
        parked=tuple(record.id for record in found.parked),
        stale=tuple(record.id for record in found.stale),
        lost=tuple(record.id for record in found.lost),
        own_memory_bytes=sum(_own_memory(record) for record in found.all),
    )


def _own_memory(record: InstanceRecord) -> int:
    if record.vmm is not None:
        with suppress(OSError):  # it has ended, or is not ours to look at
            rollup = procfs.smaps_rollup(record.vmm.pid)
            return rollup["Anonymous"] + rollup.get("Swap", 0)
    return 0


def fill(
    store: Store,
    source: str,
    *,
    size: int,
    memory_policy: MemoryPolicy,
    on_result: OnResult = lambda _name, _error: None,
) -> PoolInfo:
    """Have ``size`` forks of ``source`` parked; see ``Host.pool``."""
    if not 0 <= size <= FORKS_MAX:
        raise ConfigError(f"{size} is no size of a pool.", hint=f"Use 0 to {FORKS_MAX}; 0 empties it.")
    seen = _find_or_gone(store, source, _candidates(store))
    kind = "snapshot" if seen.state == SNAPSHOT else "instance"
    with locked(store.paths.locks, f"{kind}-{seen.id}-pool"):
        if not size:
            empty(store, members(store, seen).all)
            return _info(seen, members(store, seen))
        return _fill_up(store, seen, size, memory_policy, on_result)


def _fill_up(store: Store, seen: Source, size: int, memory_policy: MemoryPolicy, on_result: OnResult) -> PoolInfo:
    """What the pool was found to be before its lock was had may be true no more: that is looked at again, and kept so."""
    with _made_or_removed(store, on_result) as batch:
        with _reading(store, seen, memory_policy) as (found, owner, paths, manifest):
            now = members(store, found)
            empty(store, (*now.stale, *now.lost, *now.parked[size:]))
            missing = size - len(now.parked)
            if missing > 0:
                if now.parked:
                    batch.require_room(now.parked[-1], missing)
                # A fork that nobody has claimed has no name of its own: its id stands for it.
                records = [
                    msgspec.structs.replace(record, name=record.id, pool=found.id)
                    for record in fork.new_records(store, owner, [""] * missing, manifest)
                ]
                fork.from_published(store, batch, records, paths, manifest, memory_policy)
        batch.start()
    return _info(found, members(store, found))


def _require_asleep(source: Source) -> None:
    """A pool is of one snapshot, and a guest that runs leaves that behind at once.

    Raises:
        StateError: if the source sleeps on none.
    """
    if source.snapshot is not None:
        return
    empties = f"`ramet pool {source.label} --size 0` empties its pool."
    asleep = (
        f"Put it to sleep (ramet standby {source.name}), or park forks of a snapshot, which stays what it is: "
        f"ramet snapshot create {source.name} golden, ramet pool snapshot:golden --size N. "
    )
    raise StateError(
        f"Cannot park forks of {source.label!r}: {source.why}.",
        actual=source.state,
        required=[State.STANDBY.value],
        hint=empties if source.state == DELETED else asleep + empties,
    )


def empty(store: Store, records: Sequence[InstanceRecord]) -> None:
    """Remove forks of a pool. One that is claimed at this very moment is not one any more, and stays."""
    for record in records:
        with suppress(LockedError, NotFoundError), observe.exclusive(store, record.id, timeout_s=0) as instance:
            if is_member(instance.record):
                take_away(instance)


@contextmanager
def _made_or_removed(store: Store, on_result: OnResult) -> Iterator[Batch]:
    """A batch of forks that are to be parked. If the block fails, those that were made are removed."""
    with fork.all_or_nothing(store) as announce:
        batch = Batch(
            store,
            announce=announce,
            take_back=lambda ids: fork.undo(store, ids),
            wake=park,
            partial=False,
            on_result=on_result,
        )
        try:
            yield batch
        except RoomError as err:
            raise RoomError(err.message, fits=err.fits, wanted=err.wanted, hint="Park fewer: --size.") from err


@contextmanager
def _reading(
    store: Store, seen: Source, memory_policy: MemoryPolicy
) -> Iterator[tuple[Source, InstanceRecord, SnapshotPaths, Manifest]]:
    """Keep the source asleep and its snapshot there: what it is now, whose it is, and its files.

    Raises:
        StateError: if it sleeps on none.
    """
    if seen.state == DELETED:
        _require_asleep(seen)
    with ExitStack() as held:
        record = None
        if seen.state == SNAPSHOT:
            held.enter_context(fork.not_waking(store, seen.id, memory_policy))
            found = seen
        else:
            record = held.enter_context(observe.shared(store, seen.id))
            found = _of_instance(record)
            _require_asleep(found)
        assert found.snapshot is not None
        paths = held.enter_context(store.reading(found.snapshot))
        manifest = manifests.load(paths)
        yield found, record or fork.owner_of(store, manifest), paths, manifest


def park(store: Store, record: InstanceRecord) -> None:
    """Load a fork that sleeps, give its guest an identity, have it rehearse a command, and stop it. Its workload stays frozen.

    If it fails, the fork sleeps and no VMM is left.
    """
    with observe.exclusive(store, record.id) as instance:
        require(Verb.RESTORE, instance.record.state, name=instance.record.name)
        with store.reading(snapshot_of(instance.record)) as paths:
            manifest = restore.check(instance, paths)
            with instance.pending(FILL):
                store.say(f"{record.lineage[-1].name}: parking a fork")
                restore.wake(instance, paths, manifest, then=_come_to_rest)


def _come_to_rest(instance: Locked, manifest: Manifest, template: Template | None) -> None:
    """Two forks that run at all have drawn different randomness: an identity comes first here too. The claim gives another."""
    record, run_dir = instance.record, instance.paths.run
    generation = record.generation + 1
    with instance.driver.connect(run_dir) as monitor:
        monitor.resume_vcpus()
        with guest.identified(run_dir, record, generation=generation) as agent:
            guest.rehearse(agent)
        monitor.stop_vcpus()
    restore.note_woken(instance, manifest, template, state=State.PARKED, generation=generation, pool=record.pool)
