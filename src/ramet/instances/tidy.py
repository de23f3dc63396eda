"""What every command does first for one that was killed: snapshots that nothing refers to go, and instances that are not whole.

``observe.settle`` tidies up after a verb on an instance that is still there; the store sweeps its own work in progress.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from ramet.errors import CorruptError, InUseError, LockedError, NotFoundError, RametError, host_errors
from ramet.instances.context import Locked, Store
from ramet.instances.delete import take_away, take_away_damaged
from ramet.instances.observe import settle
from ramet.signals import signals_held
from ramet.store import chores
from ramet.store.chores import Kind
from ramet.store.locks import locked

log = logging.getLogger("ramet.store")


def tidy(store: Store) -> None:
    """Do the chores of commands that were killed. What cannot be done now is left to the next command, with a warning.

    Raises:
        HostError: if the store is not there any more, or cannot be looked into.
    """
    with (
        host_errors(f"look into {store.paths.locks} for what killed commands left"),
        os.scandir(store.paths.locks) as entries,
    ):
        paths = [entry.path for entry in entries if entry.name.startswith(chores.PREFIX)]
    for path in sorted(paths):
        try:
            with chores.abandoned(Path(path)) as todo:
                todo[:] = [one for one in todo if not _is_done(store, *one)]
        except (OSError, RametError) as err:  # of the file itself
            log.warning("%s: what a killed command has left to do could not be read or ended: %s", path, err)


def _is_done(store: Store, kind: Kind, one: str) -> bool:
    log.info("a command was killed that had %s to %s", one, kind)
    try:
        with signals_held():
            _DO[kind](store, one)
    except (LockedError, CorruptError):  # somebody is at work on it; or a record that is damaged may refer to it
        return False
    except (OSError, RametError) as err:
        log.warning("what a killed command has left could not be removed: %s", err)
        return False
    return True


def _collect(store: Store, snapshot_id: str) -> None:
    records, damaged = store.readable_records()
    if snapshot_id in store.referrers(records):
        return  # also where somebody reads it: it may lose its last reference later, and be all that is left
    for err in damaged.values():
        raise err
    try:
        store.delete_snapshot(snapshot_id, timeout_s=0)
    except InUseError:
        return


def _remove(store: Store, instance_id: str) -> None:
    """What a killed create or fork had begun, or a killed removal had not ended."""
    with locked(store.paths.locks, f"instance-{instance_id}", timeout_s=0):
        try:
            take_away(Locked(store, store.read(instance_id)))
        except NotFoundError:
            return
        except CorruptError as err:
            log.warning("%s", err.message)
            take_away_damaged(store, instance_id)


def _settle(store: Store, instance_id: str) -> None:
    """What the next verb on it would do first."""
    with locked(store.paths.locks, f"instance-{instance_id}", timeout_s=0), suppress(NotFoundError):
        settle(store, store.read(instance_id))


_DO: Mapping[Kind, Callable[[Store, str], None]] = {
    Kind.COLLECT: _collect,
    Kind.REMOVE: _remove,
    Kind.SETTLE: _settle,
}
