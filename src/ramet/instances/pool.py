"""pool: forks that wait, loaded and paused, to be claimed.

There is no daemon: ``pool`` fills up to a size and ends, and a claim (``claim.py``) takes one of what is there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

import msgspec

from ramet.config import FORKS_MAX
from ramet.errors import ConfigError, LockedError, NotFoundError, StateError
from ramet.instances import fork, guest, observe, pools, restore
from ramet.instances.batch import Batch, OnResult, all_or_nothing
from ramet.instances.context import Locked, Store, snapshot_of
from ramet.instances.delete import take_away
from ramet.instances.pools import Source
from ramet.model import CopyInRam, InstanceRecord, Manifest, MemoryPolicy, PoolInfo, State
from ramet.paths import SnapshotPaths
from ramet.snapshots import manifest as manifests
from ramet.states import Verb, require
from ramet.store.locks import locked

FILL = "pool"
"""``pending`` of a fork while it is being parked."""


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
    seen = pools.find_or_gone(store, source, pools.waiting(store))
    kind = "snapshot" if seen.state == pools.SNAPSHOT else "instance"
    with locked(store.paths.locks, f"{kind}-{seen.id}-pool"):
        if not size:
            empty(store, pools.members(store, seen).all)
            return pools.info(seen, pools.members(store, seen))
        return _fill_up(store, seen, size, memory_policy, on_result)


def _fill_up(store: Store, seen: Source, size: int, memory_policy: MemoryPolicy, on_result: OnResult) -> PoolInfo:
    """What the pool was found to be before its lock was had may be true no more: that is looked at again, and kept so."""
    with _made_or_removed(store, on_result) as batch:
        with _reading(store, seen, memory_policy) as (found, owner, paths, manifest):
            now = pools.members(store, found)
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
    return pools.info(found, pools.members(store, found))


def _require_asleep(source: Source) -> None:
    """A pool is of one snapshot, and a guest that runs leaves that behind at once.

    Raises:
        StateError: if the source sleeps on none.
    """
    if source.snapshot is not None:
        return
    empties = f"`ramet pool {source.label} --size 0` empties its pool."
    asleep = f"{pools.way_to_sleep(source)} "
    if pools.can(Verb.SNAPSHOT, source):
        asleep += (
            "Or park forks of a snapshot, which stays what it is: "
            f"ramet snapshot create {source.name} golden, ramet pool snapshot:golden --size N. "
        )
    raise StateError(
        f"Cannot park forks of {source.label!r}: {source.why}.",
        actual=source.state,
        required=[State.STANDBY.value],
        hint=empties if source.state == pools.DELETED else asleep + empties,
    )


def empty(store: Store, records: Sequence[InstanceRecord]) -> None:
    """Remove forks of a pool. One that is claimed at this very moment is not one any more, and stays."""
    for record in records:
        with suppress(LockedError, NotFoundError), observe.exclusive(store, record.id, timeout_s=0) as instance:
            if pools.is_member(instance.record):
                take_away(instance)


@contextmanager
def _made_or_removed(store: Store, on_result: OnResult) -> Iterator[Batch]:
    """A batch of forks that are to be parked. If the block fails, those that were made are removed."""
    with all_or_nothing(store) as announce:
        yield Batch(
            store,
            announce=announce,
            wake=park,
            partial=False,
            on_result=on_result,
            if_too_many="Park fewer: --size.",
        )


@contextmanager
def _reading(
    store: Store, seen: Source, memory_policy: MemoryPolicy
) -> Iterator[tuple[Source, InstanceRecord, SnapshotPaths, Manifest]]:
    """Keep the source asleep and its snapshot there: what it is now, whose it is, and its files.

    Raises:
        StateError: if it sleeps on none.
    """
    if seen.state == pools.DELETED:
        _require_asleep(seen)
    with ExitStack() as held:
        record = None
        if seen.state == pools.SNAPSHOT:
            held.enter_context(fork.not_waking(store, seen.id, memory_policy))
            found = seen
        else:
            record = held.enter_context(observe.shared(store, seen.id))
            found = pools.of_instance(record)
            _require_asleep(found)
        assert found.snapshot is not None
        held.enter_context(store.collecting_later(found.snapshot))  # the last fork that shares it may be removed here
        paths = held.enter_context(store.reading(found.snapshot))
        manifest = manifests.load(paths)
        yield found, record or fork.owner_of(store, manifest), paths, manifest


def park(store: Store, record: InstanceRecord) -> None:
    """Load a fork that sleeps, give its guest an identity, have it rehearse a command, and stop it. Its workload stays frozen.

    If it fails, the fork sleeps and no VMM is left.
    """
    with observe.exclusive(store, record.id) as instance:
        require(Verb.RESTORE, instance.record, name=instance.record.name)
        with store.reading(snapshot_of(instance.record)) as paths:
            manifest = restore.check(instance, paths)
            with instance.pending(FILL):
                store.say(f"{record.lineage[-1].name}: parking a fork")
                restore.wake(instance, paths, manifest, then=_come_to_rest)


def _come_to_rest(instance: Locked, manifest: Manifest, copy_in_ram: CopyInRam | None) -> None:
    """Two forks that run at all have drawn different randomness: an identity comes first here too. The claim gives another."""
    record, run_dir = instance.record, instance.paths.run
    generation = record.generation + 1
    with instance.driver.connect(run_dir) as monitor:
        monitor.resume_vcpus()
        with guest.identified(run_dir, record, generation=generation) as agent:
            guest.rehearse(agent, run_dir)
        monitor.stop_vcpus()
    restore.note_woken(instance, manifest, copy_in_ram, state=State.PARKED, generation=generation, pool=record.pool)
