"""fork --from-pool: parked forks become instances with a name, an identity, and a workload that runs."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import NoReturn

import msgspec

from ramet import process
from ramet.errors import ConflictError, GuestError, HostError, LockedError, NotFoundError, StateError, VmmError
from ramet.instances import guest, naming, observe, pools
from ramet.instances.batch import Announce, OnResult, all_or_nothing
from ramet.instances.context import Locked, Store
from ramet.instances.pools import Members, Source
from ramet.model import Failure, InstanceRecord, State
from ramet.signals import signals_held
from ramet.states import Verb
from ramet.store import chores
from ramet.store import names as store_names
from ramet.store.chores import Kind

log = logging.getLogger("ramet.pool")
NAMES_TRIED = 100
"""How often a free name is looked for that another command takes first."""
BUSY_TIMEOUT_S = 2.0
"""How long a fork is waited for that another command has locked, once no other is left: it may only look at it."""
FAILURES_MAX = 2
"""So many forks in a row that do not come up have a fault in common: the others would be lost to it too."""


@dataclass(slots=True)
class _Ready:
    """The parked forks that a claim can take, and how it went so far."""

    free: deque[str]
    """Those that were not tried, oldest first."""
    busy: deque[str] = field(default_factory=deque)
    """Those that another command had locked."""
    failures: int = 0
    """How many in a row did not come up."""
    last: GuestError | VmmError | None = None
    """Why the last of them did not."""

    @property
    def left(self) -> int:
        return len(self.free) + len(self.busy)


def claim(
    store: Store, source: str, names: Sequence[str], *, count: int | None, on_result: OnResult
) -> tuple[tuple[str, ...], int]:
    """Take parked forks from the pool of ``source``; returns their ids, and how many are left. See ``Host.fork``.

    Raises:
        StateError: if the source does not sleep: its parked forks are not of what it is now; nothing was touched.
        ConflictError: if it sleeps on another snapshot since, there are too few, or two in a row do not come up; nothing was
            touched, or what was taken is removed, and the others stay parked.
    """
    for name in names:
        naming.check_new_name(name)
    with pools.kept(store, source) as found:
        now = pools.members(store, found)
        wanted = len(naming.names_of_forks(store, found.name, names, count))
        noted = chores.noted_ids(store.paths.locks)  # it is being made, or a killed command is to be undone
        ready = _Ready(free=deque(record.id for record in now.parked if record.id not in noted))
        _require_enough(found, now, ready.left, wanted)
        ids: list[str] = []
        with _all_or_nothing(store, wanted) as announce:
            for index in range(wanted):
                taken = _claim_one(store, found, ready, names[index] if index < len(names) else None, announce)
                ids.append(taken.id)
                on_result(taken.name, None)
        return tuple(ids), ready.left


def _require_enough(source: Source, now: Members, ready: int, wanted: int) -> None:
    for record in now.lost:
        log.warning("the parked fork %s of %s is skipped: its VMM has ended", record.id, source.label)
    if ready >= wanted:
        return
    fill, can_fork = f"ramet pool {source.label} --size N", pools.can(Verb.FORK, source)
    without = f" `ramet fork {source.label} --start` makes one without a pool." if can_fork else ""
    if now.stale:
        why = source.why or f"{source.label} has slept again since"
        message = f"The parked forks of {source.label!r} ({len(now.stale)}) are stale, of an earlier snapshot: {why}."
        now_instead = f" `ramet fork {source.label}` makes one of what it is now." if can_fork else ""
        if source.snapshot is not None:
            raise ConflictError(message, hint=f"`{fill}` replaces them.{now_instead}")
        raise StateError(
            message,
            actual=source.state,
            required=[State.STANDBY.value],
            hint=f"`{fill}` replaces them once it sleeps.{now_instead}",
        )
    if source.snapshot is None:
        raise StateError(
            f"There are no parked forks of {source.label!r}: {source.why}.",
            actual=source.state,
            required=[State.STANDBY.value],
            hint=f"{pools.way_to_sleep(source)} Then `{fill}` parks some.{without}",
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
    with all_or_nothing(store) as announce:
        yield announce


def _claim_one(store: Store, source: Source, ready: _Ready, name: str | None, announce: Announce) -> InstanceRecord:
    """Take the oldest that is nobody else's; one that does not come up is told, and the next one taken.

    Raises:
        ConflictError: if none is left, or two in a row did not come up.
    """
    while ready.left:
        timeout_s = 0.0 if ready.free else BUSY_TIMEOUT_S
        instance_id = (ready.free or ready.busy).popleft()
        with ExitStack() as held:
            try:
                instance = held.enter_context(observe.exclusive(store, instance_id, timeout_s=timeout_s))
            except NotFoundError:  # removed
                continue
            except LockedError:
                if not timeout_s:
                    ready.busy.append(instance_id)
                continue
            # Claims note what they take under its lock: one that is noted now is to be removed, whoever has it.
            if instance_id in chores.noted_ids(store.paths.locks) or not pools.is_fresh(instance.record, source):
                continue
            held.enter_context(store.ended_if_killed(Kind.SETTLE, instance_id))
            try:
                _take(instance, source, name, announce)
            except (GuestError, VmmError) as err:
                has_failed = _has_failed(instance, ready, err)
            else:
                has_failed = False
                ready.failures, ready.last = 0, None
            if not has_failed:
                return instance.record
        if ready.failures >= FAILURES_MAX:
            _give_up(source, ready)
    raise ConflictError(
        f"No fork of {source.label!r} is parked any more.",
        hint=f"`ramet pool {source.label} --size N` parks more.",
    ) from ready.last


def _has_failed(instance: Locked, ready: _Ready, error: GuestError | VmmError) -> bool:
    """Whether a claim that ended in an error did not happen: told, and counted."""
    record = instance.record
    if record.state is State.RUNNING:  # what the record says is true, and it is still marked as pending
        log.warning(
            "%s is claimed, and its workload not thawed yet: the next verb on it does it: %s", record.name, error
        )
        return False
    became = "stays parked" if record.state is State.PARKED else "is ended"
    log.warning("the parked fork %s did not come up, and %s: %s", record.id, became, error.message)
    ready.failures, ready.last = ready.failures + 1, error
    return True


def _give_up(source: Source, ready: _Ready) -> NoReturn:
    assert ready.last is not None
    raise ConflictError(
        f"{ready.failures} parked forks of {source.label!r} in a row did not come up: {ready.last.message} "
        f"{ready.left} more were not tried.",
        hint=f"See what the host lacks (ramet doctor), then claim again; `ramet pool {source.label} --size N` replaces "
        "those that were lost.",
    ) from ready.last


def _take(instance: Locked, source: Source, name: str | None, announce: Announce) -> None:
    """Name, identity, record, thaw. Until the record says that it runs, whatever goes wrong or is killed leaves it parked, or
    ended if its guest is to blame; from then on it is claimed, and thawed by the next verb if it is not here.
    """
    parked = instance.record
    paths, generation = instance.paths, parked.generation + 1
    with instance.pending(observe.CLAIM):
        is_touched = False
        try:
            given = _name(instance.store, parked.id, source, name)
            with instance.driver.connect(paths.run) as monitor:
                is_touched = True
                monitor.resume_vcpus()
            named = msgspec.structs.replace(parked, name=given)
            with (
                guest.identified(paths.run, named, generation=generation) as agent,
                signals_held(),
            ):
                announce([parked.id])  # not sooner: what is given back is not this command's to remove
                instance.change(name=given, state=State.RUNNING, generation=generation, pool=None)
                guest.thaw_by(agent, paths.run)
        except BaseException as err:
            with signals_held():
                _give_back(instance, parked, err, is_touched=is_touched)
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


def _give_back(instance: Locked, parked: InstanceRecord, error: BaseException, *, is_touched: bool) -> None:
    """Make it a parked fork again, or one that was lost: a guest that does not answer would keep every claim waiting."""
    is_alive = parked.vmm is not None and process.is_alive(parked.vmm)
    if instance.record.state is State.RUNNING and is_alive:
        return
    if is_alive and not is_touched:  # it is at rest, and a monitor that is out of reach now is no reason to end it
        _untouched(instance, parked)
        return
    if isinstance(error, (GuestError, VmmError)):
        back = msgspec.structs.replace(parked, pending=observe.CLAIM)  # lost, if its VMM has ended by itself
        if parked.vmm is not None and is_alive:
            observe.end_vmm(instance.paths, parked.vmm)
            back = msgspec.structs.replace(
                back,
                state=State.FAILED,
                failure=Failure.VMM_LOST,
                failure_detail=f"It was ended when it was claimed: {error.message} Its workload had not run: nothing is lost.",
                vmm=None,
                mapped_snapshot=None,
                diff_base=None,
            )
        instance.put_back(back)
    observe.settle_after_failure(instance)


def _untouched(instance: Locked, parked: InstanceRecord) -> None:
    """Back as it was; what cannot be done now, the next command does, which finds that a claim is pending."""
    try:
        store_names.release_others(instance.store.paths.instance_names, parked.name, parked.id)
        instance.put_back(parked, durable=False)
    except HostError as err:
        log.warning("%s: the next command tidies up after a claim that failed: %s", parked.id, err.message)


def _release(instance: Locked, name: str) -> None:
    """Free the name that it was parked under: it has another, and what cannot be done now is no failure of the claim."""
    try:
        store_names.release(instance.store.paths.instance_names, name, instance.record.id)
    except HostError as err:
        log.warning("%s is still called %s too: %s", instance.record.name, name, err.message)
