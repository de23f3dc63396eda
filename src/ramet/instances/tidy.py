"""What every command does first for one that was killed: snapshots that nothing refers to go, and instances that are not whole.

It looks at names of locks alone (``Store.even_if_killed``), and at the store only where one is free that should be held.
``observe.settle`` tidies up after a verb on an instance that is still there; the store sweeps its own work in progress.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

from ramet.errors import CorruptError, HostError, InUseError, LockedError, NotFoundError
from ramet.instances.context import Chore, Locked, Store
from ramet.instances.delete import take_away, take_away_damaged
from ramet.store.layout import is_id
from ramet.store.locks import locked

log = logging.getLogger("ramet.store")


def tidy(store: Store) -> None:
    """Do every chore whose command was killed; those of commands that are at work are left to them."""
    for path in sorted(store.paths.locks.iterdir()):
        chore, _, rest = path.name.partition("-")
        one = rest.partition("-")[0]
        if chore in list(Chore) and is_id(one):
            with suppress(LockedError):
                _do(store, path, Chore(chore), one)


def _do(store: Store, path: Path, chore: Chore, one: str) -> None:
    with locked(store.paths.locks, path.name, timeout_s=0):
        log.info("a command was killed that had %s to %s", one, chore)
        try:
            if chore is Chore.COLLECT:
                _collect(store, one)
            else:
                _remove(store, one)
            return
        except LockedError:
            log.info("%s is in use: that is left to the next command", one)
    path.touch()


def _collect(store: Store, snapshot_id: str) -> None:
    try:
        store.delete_snapshot(snapshot_id, timeout_s=0)
    except InUseError:
        return
    except (CorruptError, HostError) as err:
        log.warning("snapshot %s was left: %s", snapshot_id, err.message)


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
