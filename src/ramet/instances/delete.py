"""rm: the VMM, the name, the directory, and every snapshot that nothing references any more."""

from __future__ import annotations

from contextlib import suppress

from ramet.errors import CorruptError, HostError, StateError
from ramet.instances.context import Locked, Store
from ramet.instances.observe import (
    end_vmm,
    exclusive,
    free_other_names,
    is_live,
    may_have_other_names,
    reap_strays,
    shared,
)
from ramet.model import RemovalPlan, State
from ramet.signals import signals_held
from ramet.store import names
from ramet.store.chores import Kind
from ramet.store.layout import discard
from ramet.store.locks import locked


def remove(store: Store, name: str, *, force: bool) -> None:
    """Delete an instance. What its forks and named snapshots need stays: they have inodes of their own. If this is killed once
    it has begun, the next command ends it.

    ``force`` also ends one that runs, and removes one whose record is damaged; the snapshots of that one stay, since nobody
    knows which they were.

    Raises:
        StateError: if it is running or paused and ``force`` was not given; nothing was touched.
        CorruptError: if its record is damaged and ``force`` was not given; nothing was touched.
    """
    instance_id = store.find(name)
    try:
        with exclusive(store, name) as instance:
            record = instance.record
            if is_live(record) and not force:
                raise StateError(
                    f"Cannot remove {record.name!r}: it is {record.state.value}.",
                    actual=record.state.value,
                    required=[state.value for state in (State.STANDBY, State.STOPPED, State.FAILED)],
                    hint=f"Stop it first, or kill and remove it: ramet rm --force {record.name}",
                )
            take_away(instance)
    except CorruptError:
        if not force:
            raise
        with locked(store.paths.locks, f"instance-{instance_id}"):
            take_away_damaged(store, instance_id)


def plan(store: Store, name: str) -> RemovalPlan:
    """What ``remove`` would do now, with ``force``; nothing is touched.

    Raises:
        NotFoundError: if there is no such instance.
    """
    instance_id = store.find(name)
    try:
        with shared(store, name) as record:
            others = [one for one in store.readable_records()[0] if one.id != record.id]
            needed = store.referrers(others)
            held = record.references
            return RemovalPlan(
                id=record.id,
                name=record.name,
                state=record.state,
                kills_pid=record.vmm.pid if record.vmm is not None else None,
                deletes_snapshots=tuple(one for one in held if one not in needed),
                keeps_snapshots={one: needed[one].in_words for one in held if one in needed},
            )
    except CorruptError as err:
        return RemovalPlan(
            id=instance_id,
            name=name,
            state=None,
            kills_pid=None,
            deletes_snapshots=(),
            keeps_snapshots={},
            damaged=err.message,
        )


def take_away(instance: Locked) -> None:
    """No VMM, no name, no directory, however much of it there is; and no snapshot that nothing else refers to."""
    store, record = instance.store, instance.record
    # A killed VM with a record would pass for one that was lost, and an instance without a name could not be removed by it.
    with (
        signals_held(),
        store.collecting(record),
        store.ended_if_killed(Kind.REMOVE, record.id),
    ):
        if record.pending is not None:
            reap_strays(instance.paths.run)  # its VMM may not be in the record yet
        end_vmm(instance.paths, record.vmm)
        if may_have_other_names(record):
            free_other_names(store, record)  # while the record still leads to them
        elif record.name != record.id:
            names.release(store.paths.instance_names, record.id, record.id)  # it may have been claimed, and kept this
        names.release(store.paths.instance_names, record.name, record.id)
        if instance.paths.dir.exists():
            discard(store.paths, instance.paths.dir)


def take_away_damaged(store: Store, instance_id: str) -> None:
    """The same of an instance whose record cannot be read: what it referred to is not known, and stays."""
    paths = store.paths.instance(instance_id)
    with signals_held(), store.ended_if_killed(Kind.REMOVE, instance_id):
        reap_strays(paths.run)
        end_vmm(paths, None)
        for entry in list(store.paths.instance_names.iterdir()):
            with suppress(CorruptError, HostError):  # another's, which is damaged too
                names.release(store.paths.instance_names, entry.name, instance_id)
        discard(store.paths, paths.dir)
