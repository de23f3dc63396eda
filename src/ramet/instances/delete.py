"""rm: the VMM, the name, the directory, and every snapshot that nothing references any more."""

from __future__ import annotations

from ramet import process
from ramet.errors import CorruptError, StateError
from ramet.instances.context import Store
from ramet.instances.observe import exclusive, is_live, reap_strays
from ramet.model import State
from ramet.store import names
from ramet.store.layout import discard
from ramet.store.locks import locked


def remove(store: Store, name: str, *, force: bool) -> None:
    """Delete an instance. What its forks and named snapshots need stays: they have inodes of their own.

    ``force`` also ends one that runs, and removes one whose record is damaged; the snapshots of that one stay, since nobody
    knows which they were.

    Raises:
        StateError: if it is running or paused and ``force`` was not given; nothing was touched.
    """
    try:
        _remove(store, name, force=force)
    except CorruptError:
        if not force:
            raise
        _remove_damaged(store, name)


def _remove(store: Store, name: str, *, force: bool) -> None:
    with exclusive(store, name) as instance:
        record = instance.record
        if is_live(record) and not force:
            raise StateError(
                f"Cannot remove {record.name!r}: it is {record.state.value}.",
                actual=record.state.value,
                required=[state.value for state in (State.STANDBY, State.STOPPED, State.FAILED)],
                hint=f"Stop it first, or kill and remove it: ramet rm --force {record.name}",
            )
        # A killed VM with a record would pass for one that was lost, and an instance without a name could not be removed by it.
        with process.signals_held(), store.collecting(record):
            if record.vmm is not None:
                process.kill_and_wait(record.vmm)
            names.release(store.paths.instance_names, record.name, record.id)
            discard(store.paths, instance.paths.dir)


def _remove_damaged(store: Store, name: str) -> None:
    instance_id = store.find(name)
    paths = store.paths.instance(instance_id)
    with locked(store.paths.locks, f"instance-{instance_id}"), process.signals_held():
        reap_strays(paths.run)
        names.release(store.paths.instance_names, name, instance_id)
        discard(store.paths, paths.dir)
