"""fork --from-pool: parked forks become instances with a name, an identity, and a workload that runs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import msgspec

from ramet import process
from ramet.errors import ConflictError, GuestError, HostError, LockedError, NotFoundError, StateError, VmmError
from ramet.instances import fork, guest, naming, observe, pool
from ramet.instances.batch import Announce, OnResult
from ramet.instances.context import Locked, Store
from ramet.instances.pool import Members, Source
from ramet.model import InstanceRecord, State
from ramet.signals import signals_held
from ramet.store import chores
from ramet.store import names as store_names
from ramet.store.chores import Kind

log = logging.getLogger("ramet.pool")
NAMES_TRIED = 100
"""How often a free name is looked for that another command takes first."""


def claim(
    store: Store, source: str, names: Sequence[str], *, count: int | None, on_result: OnResult
) -> tuple[tuple[str, ...], int]:
    """Take parked forks from the pool of ``source``; returns their ids, and how many are left. See ``Host.fork``.

    Raises:
        StateError: if the source does not sleep: its parked forks are not of what it is now; nothing was touched.
        ConflictError: if it sleeps on another snapshot since, or there are too few; nothing was touched, or what was taken is
            removed.
    """
    for name in names:
        naming.check_new_name(name)
    found = pool.find(store, source)
    now = pool.members(store, found)
    wanted = len(naming.names_of_forks(store, found.name, names, count))
    busy = chores.noted_ids(store.paths.locks)  # it is being made, or a killed command is to be undone
    ready = [record.id for record in now.parked if record.id not in busy]
    _require_enough(found, now, len(ready), wanted)
    ids: list[str] = []
    with _all_or_nothing(store, wanted) as announce:
        for index in range(wanted):
            taken = _claim_one(store, found, ready, names[index] if index < len(names) else None, announce)
            ids.append(taken.id)
            on_result(taken.name, None)
    return tuple(ids), len(ready)


def _require_enough(source: Source, now: Members, ready: int, wanted: int) -> None:
    for record in now.lost:
        log.warning("the parked fork %s of %s is skipped: its VMM has ended", record.id, source.label)
    if ready >= wanted:
        return
    fill = f"ramet pool {source.label} --size N"
    if now.stale:
        why = source.why or f"{source.label} sleeps on another since"
        message = f"The parked forks of {source.label!r} ({len(now.stale)}) descend from an older snapshot: {why}."
        now_instead = f"`ramet fork {source.label}` makes one of what it is now."
        if source.snapshot is not None:
            raise ConflictError(message, hint=f"`{fill}` replaces them; {now_instead}")
        raise StateError(
            message,
            actual=source.state,
            required=[State.STANDBY.value],
            hint=f"`{fill}` replaces them once it sleeps; {now_instead}",
        )
    if source.snapshot is None:
        raise StateError(
            f"There are no parked forks of {source.label!r}: {source.why}.",
            actual=source.state,
            required=[State.STANDBY.value],
            hint=f"Put it to sleep, then `{fill}`; `ramet fork {source.label} --start` makes one without a pool.",
        )
    raise ConflictError(
        f"{_have(ready, source.label)}, and {wanted} {'is' if wanted == 1 else 'are'} wanted.",
        hint=f"`{fill}` parks more; `ramet fork {source.label} --start` makes one without a pool, and takes longer.",
    )


def _have(ready: int, label: str) -> str:
    if not ready:
        return f"No fork of {label!r} is parked"
    return f"{ready} fork{'s' if ready > 1 else ''} of {label!r} {'are' if ready > 1 else 'is'} parked"


@contextmanager
def _all_or_nothing(store: Store, count: int) -> Iterator[Announce]:
    """A single claim has happened or, if it is killed, its fork is parked still; of several, all are removed then."""
    if count == 1:
        yield lambda _ids: None
        return
    with fork.all_or_nothing(store) as announce:
        yield announce


def _claim_one(store: Store, source: Source, ready: list[str], name: str | None, announce: Announce) -> InstanceRecord:
    """Take the oldest that is nobody else's; one that does not come up is ended, told, and the next one taken. ``ready`` keeps
    those that were not tried.

    Raises:
        ConflictError: if none is left.
    """
    while ready:
        instance_id = ready.pop(0)
        with (
            suppress(LockedError, NotFoundError),  # another command has it
            store.ended_if_killed(Kind.SETTLE, instance_id),
            observe.exclusive(store, instance_id, timeout_s=0) as instance,
        ):
            if not pool.is_fresh(instance.record, source):
                continue
            announce([instance_id])
            try:
                _take(instance, source, name)
            except (GuestError, VmmError) as err:
                log.warning("the parked fork %s did not come up, and is ended: %s", instance_id, err.message)
                continue
            return instance.record
    raise ConflictError(
        f"No fork of {source.label!r} is parked any more.",
        hint=f"`ramet pool {source.label} --size N` parks more.",
    )


def _take(instance: Locked, source: Source, name: str | None) -> None:
    """Name, identity, record, thaw. Until the record says that it runs, whatever goes wrong or is killed leaves it parked."""
    parked = instance.record
    paths, generation = instance.paths, parked.generation + 1
    with instance.pending(observe.CLAIM):
        try:
            given = _name(instance.store, parked.id, source, name)
            with instance.driver.connect(paths.run) as monitor:
                monitor.resume_vcpus()
            named = msgspec.structs.replace(parked, name=given)
            with (
                guest.identified(paths.run, named, generation=generation) as agent,
                signals_held(),
            ):
                instance.change(name=given, state=State.RUNNING, generation=generation, pool=None)
                agent.thaw(timeout_s=guest.THAW_DEADLINE_S)
        except BaseException as err:
            with signals_held():
                _give_back(instance, parked, ended=isinstance(err, (GuestError, VmmError)))
            raise
        _release(instance, parked.name)


def _name(store: Store, instance_id: str, source: Source, name: str | None) -> str:
    """Claim the name, or one that is free if none is given."""
    directory = store.paths.instance_names
    if name is not None:
        store_names.claim(directory, name, instance_id, what="instance")
        return name
    for _ in range(NAMES_TRIED):
        (free,) = naming.names_of_forks(store, source.name, (), 1)
        with suppress(ConflictError):  # another command was faster
            store_names.claim(directory, free, instance_id, what="instance")
            return free
    raise ConflictError(f"No name for a fork of {source.label!r} stayed free.", hint="Give it a name.")


def _give_back(instance: Locked, parked: InstanceRecord, *, ended: bool) -> None:
    """Make it a parked fork again, or one that was lost: a guest that does not answer would keep every claim waiting."""
    if ended and parked.vmm is not None:
        process.kill_and_wait(parked.vmm)
        instance.put_back(msgspec.structs.replace(parked, pending=observe.CLAIM), durable=False)
    if instance.record.state is State.PARKED:
        observe.settle_after_failure(instance)


def _release(instance: Locked, name: str) -> None:
    """Free the name that it was parked under: it has another, and what cannot be done now is no failure of the claim."""
    try:
        store_names.release(instance.store.paths.instance_names, name, instance.record.id)
    except HostError as err:
        log.warning("%s is still called %s too: %s", instance.record.name, name, err.message)
