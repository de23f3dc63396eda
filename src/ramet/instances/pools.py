"""Whose pool a parked fork is in, and whether it can be claimed.

A pool is nothing but its parked forks: each record names the source whose pool it is in. It is fresh if it descends from what
that source is now; the others are stale, and given to nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from ramet.errors import CorruptError, NotFoundError
from ramet.instances import naming, observe
from ramet.instances.context import Store
from ramet.linux import procfs
from ramet.model import Ancestor, InstanceRecord, PoolInfo, State
from ramet.snapshots import manifest as manifests
from ramet.states import START_STATES, Verb
from ramet.store import names

SNAPSHOT, DELETED = "snapshot", "deleted"
"""What a source is that is no instance (any more)."""


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
        name = naming.owner_name(store, manifests.load(store.paths.snapshot(snapshot_id)))
        return Source(id=snapshot_id, label=source, name=name, state=SNAPSHOT, snapshot=snapshot_id, why=None)
    return of_instance(observe.look(store, store.read(store.find(source))))


def way_to_sleep(source: Source) -> str:
    """How an instance that does not sleep comes to: a sentence that names commands."""
    if can(Verb.STANDBY, source):
        return f"Put it to sleep: ramet standby {source.name}."
    return f"Boot it and put it to sleep: ramet start {source.name}, ramet standby {source.name}."


def can(verb: Verb, source: Source) -> bool:
    """Whether a verb may start from what the source is now."""
    return source.state in START_STATES[verb]


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
        yield of_instance(record)


def of_instance(record: InstanceRecord) -> Source:
    """An instance as a source; ``record`` says what is true now."""
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


def staleness(store: Store) -> Callable[[InstanceRecord], bool]:
    """What tells whether a fork is parked, and of something that its source is no more: nobody can claim it. Each source is
    looked at once.
    """
    sources: dict[str, Source] = {}

    def is_stale(record: InstanceRecord) -> bool:
        if record.state is not State.PARKED or record.pool is None:
            return False
        if record.pool not in sources:
            sources[record.pool] = _by_id(store, record.pool, [record])
        return not is_fresh(record, sources[record.pool])

    return is_stale


def members(store: Store, source: Source) -> Members:
    """All forks of a source's pool."""
    return _sorted(source, waiting(store))


def waiting(store: Store) -> list[InstanceRecord]:
    """All forks of all pools, as they are now."""
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
    candidates = waiting(store)
    found = find_or_gone(store, source, candidates)
    return info(found, _sorted(found, candidates))


def all_pools(store: Store) -> list[PoolInfo]:
    """Every pool that has forks."""
    candidates = waiting(store)
    found = []
    for source_id in dict.fromkeys(record.pool for record in candidates if record.pool is not None):
        source = _by_id(store, source_id, candidates)
        found.append(info(source, _sorted(source, candidates)))
    return found


def _by_id(store: Store, source_id: str, candidates: Sequence[InstanceRecord]) -> Source:
    """The source of the pool of these. One that is gone goes by its id: another instance may have its name by now. One whose
    record is damaged has its name still.
    """
    parent = _parent(source_id, candidates)
    if parent.instance_id != source_id:
        is_there = store.paths.snapshot(source_id).dir.is_dir()
        called = names.names_of(store.paths.snapshot_names, source_id)
        return Source(
            id=source_id,
            label=f"snapshot:{called[0] if called else source_id}",
            name=parent.name,
            state=SNAPSHOT if is_there else DELETED,
            snapshot=source_id if is_there else None,
            why=None if is_there else "the snapshot was deleted",
        )
    label = source_id
    try:
        return of_instance(observe.look(store, store.read(source_id)))
    except NotFoundError:
        why = f"{parent.name} ({source_id}) was deleted"
    except CorruptError as err:
        why = err.message
        with suppress(NotFoundError):
            label = parent.name if store.find(parent.name) == source_id else source_id
    return Source(id=source_id, label=label, name=parent.name, state=DELETED, snapshot=None, why=why)


def _parent(source_id: str, candidates: Sequence[InstanceRecord]) -> Ancestor:
    """What the forks of a pool say of their source; of a record that somebody has changed, that may be nothing."""
    parents = (record.lineage[-1] for record in candidates if record.pool == source_id and record.lineage)
    return next(parents, Ancestor(instance_id=source_id, name=source_id, snapshot_id=None))


def find_or_gone(store: Store, source: str, candidates: Sequence[InstanceRecord]) -> Source:
    """The source of a pool, as it was given: also one that was deleted, or is damaged, if forks of it are parked; or one of those
    forks, which stands for the pool that it is in.

    Raises:
        NotFoundError: if there is none, with what is left of one that had that name.
        CorruptError: if it is damaged, and no fork of it is parked.
    """
    for record in candidates:
        if source in (record.id, record.name) and record.pool is not None:
            return _by_id(store, record.pool, candidates)
    try:
        return find(store, source)
    except (NotFoundError, CorruptError) as err:
        ids = list(dict.fromkeys(record.pool for record in candidates if record.pool is not None))
        meant = _id_of_damaged(store, source) if isinstance(err, CorruptError) else None
        for source_id in ids:
            one = _by_id(store, source_id, candidates)
            if source_id == meant or source in (one.label, one.id):
                return one
        if isinstance(err, CorruptError):
            raise
        is_snapshot = source.startswith("snapshot:")
        called = [one for one in ids if is_snapshot or _parent(one, candidates).name == source]
        labels = [one.label for one in (_by_id(store, one, candidates) for one in called) if one.state == DELETED]
        if not labels:
            raise
        left = ", ".join(f"`ramet pool {label}`" for label in labels)
        what = "snapshots that were" if is_snapshot else "one that was"
        hint = f"Of {what} deleted, parked forks are left: {left}; --size 0 removes them."
        raise NotFoundError(err.message, hint=hint) from err


def _id_of_damaged(store: Store, source: str) -> str:
    return store.find_snapshot(source) if source.startswith("snapshot:") else store.find(source)


def info(source: Source, found: Members) -> PoolInfo:
    """A pool as the surface gives it."""
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
            return procfs.own_memory_bytes(procfs.smaps_rollup(record.vmm.pid))
    return 0
