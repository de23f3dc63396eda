"""rm: the VMM, the name, the directory, and every snapshot that nothing references any more."""

from __future__ import annotations

from ramet import process
from ramet.errors import StateError
from ramet.instances.context import Store
from ramet.instances.observe import exclusive, is_live
from ramet.model import State
from ramet.store import names
from ramet.store.layout import discard


def remove(store: Store, name: str, *, force: bool) -> None:
    """Delete an instance. What its forks and named snapshots need stays: they have inodes of their own.

    Raises:
        StateError: if it is running or paused and ``force`` was not given; nothing was touched.
    """
    with exclusive(store, name) as instance:
        record = instance.record
        if is_live(record) and not force:
            raise StateError(
                f"Cannot remove {record.name!r}: it is {record.state.value}.",
                actual=record.state.value,
                required=[state.value for state in (State.STANDBY, State.STOPPED, State.FAILED)],
                hint=f"Stop it first, or kill and remove it: ramet rm --force {record.name}",
            )
        if record.vmm is not None:
            process.kill_and_wait(record.vmm)
        names.release(store.paths.instance_names, record.name, record.id)
        discard(store.paths, instance.paths.dir)
    store.collect(record.snapshot, record.mapped_snapshot, record.diff_base)
