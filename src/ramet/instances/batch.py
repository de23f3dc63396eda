"""The forks of one command: made and started several at a time, all of them or, if so wished, those that can be."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ramet.errors import NotFoundError, RametError
from ramet.instances import fan_out, room
from ramet.instances.context import Store
from ramet.instances.delete import remove
from ramet.instances.observe import reap_strays
from ramet.instances.power import start as start_instance
from ramet.instances.restore import restore
from ramet.model import InstanceRecord, MemoryPolicy, Method, State
from ramet.signals import signals_held
from ramet.store.chores import Kind

log = logging.getLogger("ramet.instances")

Announce = Callable[[Sequence[str]], None]
"""Is told the ids of forks before they are made."""
OnResult = Callable[[str, RametError | None], object]
Derive = Callable[[InstanceRecord, bool], Method | None]
"""Makes one fork, whether it is the last of all; returns how its files were copied."""
DERIVED_AT_ONCE = 4
"""It waits for the disk."""
Wake = Callable[[Store, InstanceRecord], None]
"""Starts a fork that was made."""
UNDONE_AT_ONCE = 4
"""It waits for the disk, too."""
STARTED_AT_ONCE = len(os.sched_getaffinity(0)) + 1
"""It is work for a CPU, and now and then waits for a VMM."""


def wake(store: Store, record: InstanceRecord) -> None:
    """Wake a fork, or boot one that has a disk alone."""
    if record.state is State.STOPPED:
        start_instance(store, record.id)
    else:
        restore(store, record.id, snapshot=None, discard_memory=False, discard_disk=False, verified=False)


@contextmanager
def all_or_nothing(store: Store) -> Iterator[Announce]:
    """Yields what is told the forks before they are made. If the block fails, those that were are removed; if it is killed,
    the next command removes them.
    """
    ids: list[str] = []
    with store.even_if_killed(Kind.REMOVE) as chore:

        def announce(made: Sequence[str]) -> None:
            chore.add(Kind.REMOVE, *made)
            ids.extend(made)

        try:
            yield announce
        except BaseException:
            store.say(f"stopping: removing what was made of {len(ids)}")
            undo(store, ids)
            raise


def undo(store: Store, instance_ids: Sequence[str]) -> dict[str, RametError]:
    """Remove forks, as far as they were made; one that cannot be removed does not keep the others, nor does Ctrl-C. Returns why,
    for each of those.
    """
    left: dict[str, RametError] = {}
    with signals_held():
        results = fan_out.each(
            instance_ids, lambda one: remove(store, one, force=True), at_once=UNDONE_AT_ONCE, keep_going=True
        )
        for instance_id, error in zip(instance_ids, results, strict=True):
            if error is None or isinstance(error, NotFoundError):
                continue  # that one: not begun, or its own clean-up has removed it
            log.warning("the fork %s could not be removed again: %s", instance_id, error.message)
            left[instance_id] = error
    return left


class Batch:
    """Forks in the making. One that fails ends all, unless ``partial``: then it is removed, and among the ``failures``."""

    def __init__(
        self,
        store: Store,
        *,
        announce: Announce,
        wake: Wake | None,
        partial: bool,
        on_result: OnResult,
        if_too_many: str = "Make fewer, or take those that fit: --partial.",
    ) -> None:
        """``if_too_many``: the hint where not all fit."""
        self._store = store
        self._announce = announce
        self._wake = wake
        self._partial = partial
        self._on_result = on_result
        self._if_too_many = if_too_many
        self._records: list[InstanceRecord] = []
        self._started: set[str] = set()
        self.failures: dict[str, RametError] = {}
        """By name."""
        self.left: dict[str, tuple[str, RametError]] = {}
        """Of those that failed, by name: the id of what is left, and why it could not be removed."""
        self.method: Method | None = None

    @property
    def ids(self) -> tuple[str, ...]:
        """Of those that are there, in the order of their names."""
        return tuple(record.id for record in self._left())

    def make(self, records: Sequence[InstanceRecord], derive: Derive) -> None:
        """Make them all: the first, by which it is seen how many fit; then the others, and the last one last.

        Raises:
            RoomError: if they do not all fit; with ``partial``, those that do not are among the failures.
            RametError: if one could not be made; likewise.
        """
        self._records = list(records)
        self._announce([record.id for record in records])
        *others, last = records
        if others:
            first, *others = others
            self._do([first], lambda record: self._derive(record, derive, is_last=False), at_once=1)
            if self._wake and first in self._left():
                self._do([first], self._started_by(self._wake), at_once=1)
            self._require_room_for_all()
            there = {record.id for record in self._left()}
            rest = [record for record in others if record.id in there]
            self._do(rest, lambda record: self._derive(record, derive, is_last=False), at_once=DERIVED_AT_ONCE)
        if last in self._left():
            self._do([last], lambda record: self._derive(record, derive, is_last=True), at_once=1)

    def start(self) -> None:
        """Wake, or boot, those that are to run and do not yet.

        Raises:
            RametError: if one did not come up; with ``partial``, it is among the failures.
        """
        if self._wake:
            asleep = [record for record in self._left() if record.id not in self._started]
            self._do(asleep, self._started_by(self._wake), at_once=STARTED_AT_ONCE)

    def _left(self) -> list[InstanceRecord]:
        return [record for record in self._records if record.name not in self.failures]

    def _do(self, records: Sequence[InstanceRecord], action: Callable[[InstanceRecord], bool], *, at_once: int) -> None:
        """``action`` says whether a fork has become what it is to be."""

        def done(record: InstanceRecord, result: bool | RametError) -> None:
            if isinstance(result, RametError):
                self._give_up(record, result)
            elif result:
                self._on_result(record.name, None)

        fan_out.each(records, action, at_once=at_once, keep_going=self._partial, done=done, hurry=self._end_vmms)

    def _derive(self, record: InstanceRecord, derive: Derive, *, is_last: bool) -> bool:
        self.method = derive(record, is_last) or self.method
        return self._wake is None

    def _started_by(self, wake: Wake) -> Callable[[InstanceRecord], bool]:
        store = self._store if len(self._records) == 1 else self._store.silent()

        def start(record: InstanceRecord) -> bool:
            wake(store, record)
            self._started.add(record.id)
            return True

        return start

    def _give_up(self, record: InstanceRecord, error: RametError) -> None:
        for instance_id, why in undo(self._store, [record.id]).items():
            self.left[record.name] = (instance_id, why)
        self.failures[record.name] = error
        self._on_result(record.name, error)

    def require_room(self, like: InstanceRecord, wanted: int) -> None:
        """Whether ``wanted`` more fit, as far as one that is there already, and like them, can tell.

        Raises:
            RoomError: if they do not.
        """
        found = self._room(like)
        if found.fits is not None and found.fits < wanted:
            error = found.error(wanted, found.fits, hint=self._if_too_many)
            raise error

    def _room(self, like: InstanceRecord) -> room.Room:
        pid = like.vmm.pid if like.vmm is not None else None
        return room.look(self._store.paths.home, self._written(like), pid)

    def _require_room_for_all(self) -> None:
        """Whether all fit, now that the first is there."""
        left = self._left()
        if not left or left[0] is not self._records[0]:
            return  # it has failed, and nobody knows what the others will take
        wanted = len(self._records)
        found = self._room(self._store.read(left[0].id))
        if found.fits is None or found.fits >= wanted - 1:
            fitting = "" if found.fits is None else f" of {1 + found.fits} that fit"
            self._store.say(f"making {wanted}{fitting}")
            return
        error = found.error(wanted, 1 + found.fits, hint=self._if_too_many)
        if not self._partial:
            raise error
        for record in left[1 + found.fits :]:
            self._give_up(record, error)

    def _written(self, record: InstanceRecord) -> Iterator[Path]:
        """What one more fork writes anew: nothing worth counting, where it shares its blocks."""
        if self.method is Method.REFLINK:
            return
        paths = self._store.paths.instance(record.id)
        yield from (paths.disk, paths.memory)
        if record.snapshot is not None and record.memory_policy is not MemoryPolicy.SHARE:
            yield from self._store.paths.snapshot(record.snapshot).dir.iterdir()

    def _end_vmms(self) -> None:
        """Of forks that are being started and will be removed: nobody waits for their guests."""
        for record in self._records:
            if record.id not in self._started:
                reap_strays(self._store.paths.instance(record.id).run)
