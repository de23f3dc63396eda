"""What every command does first for one that was killed: snapshots that nothing refers to go, and instances that are not whole.

``observe.settle`` tidies up after a verb on an instance that is still there; the store sweeps its own work in progress.
"""

from __future__ import annotations

import logging

from ramet.errors import CorruptError, InUseError, LockedError, NotFoundError, RametError
from ramet.instances.context import Locked, Store
from ramet.instances.delete import take_away, take_away_damaged
from ramet.signals import signals_held
from ramet.store import chores
from ramet.store.chores import Kind
from ramet.store.locks import locked

log = logging.getLogger("ramet.store")


class _LeftError(RametError):
    """Something could not be done yet, and was said: the chore stays for the next command."""


def tidy(store: Store) -> None:
    """Do the chores of commands that were killed. What cannot be done now is left to the next command, with a warning."""
    for path in sorted(store.paths.locks.iterdir()):
        if path.name.startswith(chores.PREFIX):
            try:
                with chores.abandoned(path) as todo:
                    _do(store, todo)
            except _LeftError:
                continue


def _do(store: Store, todo: list[tuple[Kind, str]]) -> None:
    is_left = False
    for kind, one in todo:
        log.info("a command was killed that had %s to %s", one, kind)
        try:
            with signals_held():
                (_collect if kind is Kind.COLLECT else _remove)(store, one)
        except (LockedError, CorruptError):  # somebody is at work on it; or a record that is damaged may refer to it
            is_left = True
        except RametError as err:
            log.warning("what a killed command has left could not be removed: %s", err.message)
            is_left = True
    if is_left:
        raise _LeftError("It is left.")


def _collect(store: Store, snapshot_id: str) -> None:
    if snapshot_id in store.referrers(store.records()):
        return  # also where somebody reads it: it may lose its last reference later, and be all that is left
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
