"""pause, resume, stop and start."""

from __future__ import annotations

import msgspec

from ramet import process
from ramet.errors import ConflictError, GuestError, GuestTimeoutError, StateError, VmmDiedError, host_errors
from ramet.guests.client import AgentClient
from ramet.instances import guest, live_files
from ramet.instances.boot import boot
from ramet.instances.context import Locked, Store, snapshot_of
from ramet.instances.observe import FORCED_STOP, end_vmm, exclusive, observed
from ramet.model import State
from ramet.signals import signals_held
from ramet.snapshots import manifest as manifests
from ramet.states import START_STATES, Verb, is_reached, next_step, require
from ramet.store.derive import ANY_METHOD, derive

BOOT_TIMEOUT_S = 60.0


def reached(store: Store, instance: Locked, verb: Verb) -> bool:
    """Note it and return True if ``verb`` has nothing to do."""
    if is_reached(verb, instance.record.state):
        store.note = f"already {instance.record.state.value}"
        return True
    return False


def pause(store: Store, name: str) -> None:
    """Freeze the workload, sync, stop the vCPUs. If the guest cannot be frozen in time it runs on and this raises."""
    with exclusive(store, name) as instance:
        if reached(store, instance, Verb.PAUSE):
            return
        require(Verb.PAUSE, instance.record, name=name)
        with instance.pending("pause"), instance.driver.connect(instance.paths.run) as monitor:
            guest.freeze(monitor, instance.paths.run)
            try:
                instance.change(state=State.PAUSED, pending=None)
            except BaseException:
                with signals_held():
                    if store.read(instance.record.id).state is not State.PAUSED:  # what is on disk is the truth
                        guest.unfreeze(monitor, instance.paths.run)
                raise


def resume(store: Store, name: str) -> None:
    """Start the vCPUs, then thaw the workload."""
    with exclusive(store, name) as instance:
        if reached(store, instance, Verb.RESUME):
            return
        require(Verb.RESUME, instance.record, name=name)
        with instance.pending("resume"), instance.driver.connect(instance.paths.run) as monitor:
            guest.unfreeze(monitor, instance.paths.run)
            instance.change(state=State.RUNNING, pending=None)


def stop(store: Store, name: str, *, discard_memory: bool, timeout_s: float, force: bool) -> None:
    """Shut the guest down and keep its live disk. ``force`` kills a guest that does not shut down in time.

    Raises:
        VmmDiedError: if ``force`` was not given and it went down in another way than by shutting down: it is failed.
        GuestTimeoutError: if ``force`` was not given and the guest did not take the request, or is still up ``timeout_s`` after
            it: the instance is what its guest makes of it, running until it goes down, and stopped from then on.
    """
    with exclusive(store, name) as instance:
        state = instance.record.state
        if reached(store, instance, Verb.STOP):
            return
        if state is State.STANDBY:
            _discard_memory(store, instance, allowed=discard_memory)
            return
        require(Verb.STOP, instance.record, name=name)
        with store.collecting(instance.record), instance.pending("stop"):
            must_be_killed = _shut_down(store, instance, timeout_s=timeout_s, force=force)
            if not must_be_killed and not force:
                _require_orderly_end(store, instance)
            with signals_held():  # a killed VMM that the record says runs would pass for one that was lost
                if must_be_killed and instance.record.vmm is not None:
                    instance.change(durable=False, pending=FORCED_STOP)
                end_vmm(instance.paths, instance.record.vmm)
                live_files.sync_disk(instance.paths)  # it is all that is left; of a copy nothing may be on the disk yet
                instance.change(state=State.STOPPED, vmm=None, snapshot=None, mapped_snapshot=None, diff_base=None)
                live_files.clear(instance.paths, keep_disk=True)


def start(store: Store, name: str) -> None:
    """Boot the live disk with the image that the instance was created with. The sleep that one which was lost had woken from is
    given up with that.
    """
    with exclusive(store, name) as instance:
        if reached(store, instance, Verb.START):
            return
        if instance.record.state is State.STANDBY:
            raise StateError(
                f"Cannot start {name!r}: it is standby, and start boots a disk afresh.",
                actual=State.STANDBY.value,
                required=sorted(state.value for state in START_STATES[Verb.START]),
                hint=f"`ramet restore {name}` wakes it with its memory. To boot afresh: ramet stop {name} --discard-memory",
            )
        require(Verb.START, instance.record, name=name)
        if not instance.paths.disk.exists():
            raise ConflictError(f"{name!r} has no disk to boot.", hint=f"Remove it: ramet rm {name}")
        last_sleep = instance.record.snapshot
        with store.collecting(instance.record), instance.pending("start"):
            if instance.record.pool is not None:
                instance.change(pool=None)  # one that was lost in a pool: what boots its disk is no pool's to replace
            boot(instance, timeout_s=BOOT_TIMEOUT_S)
        if last_sleep is not None:
            store.note = f"booted from its disk; its last sleep, {last_sleep}, is given up"


def _shut_down(store: Store, instance: Locked, *, timeout_s: float, force: bool) -> bool:
    """Ask the guest to go down and wait for that; returns whether its VMM is left to be killed."""
    vmm = instance.record.vmm
    if vmm is None:
        return False
    name, was_paused = instance.record.name, instance.record.state is State.PAUSED
    asked = not (force and was_paused)
    if asked:
        try:
            if was_paused:
                with instance.driver.connect(instance.paths.run) as monitor:
                    guest.unfreeze(monitor, instance.paths.run)
                instance.change(state=State.RUNNING)
            store.say(f"{name}: shutting down")
            with AgentClient.open(instance.paths.run, deadline_s=timeout_s) as agent:
                agent.shutdown()
        except (GuestError, VmmDiedError) as err:
            # A guest that cannot be asked is no reason not to kill it, but only when told to.
            if not force and process.is_alive(vmm):
                if isinstance(err, GuestTimeoutError):
                    raise GuestTimeoutError(
                        f"{name!r} did not take the request to shut down: {err.message}",
                        hint=f"`ramet logs {name}` shows the guest's console. {_kill(name)}",
                    ) from err
                raise
    if asked and process.wait_gone(vmm, timeout_s):
        return False
    if not force:
        instance.change(durable=False, pending=None)  # nothing is half done: the guest runs, and has been asked
        paused = "; it is not paused any more" if was_paused else ""
        raise GuestTimeoutError(
            f"{name!r} was asked to shut down and is still up {timeout_s:g} s later. It may yet go down{paused}.",
            hint=f"`ramet show {name}` says whether it has; --timeout waits longer. {_kill(name)}",
        )
    store.note = "killed: it did not shut down in time" if asked else "killed: it was paused"
    return True


def _require_orderly_end(store: Store, instance: Locked) -> None:
    """That the guest has shut down: it may have panicked instead, or its VMM have been killed.

    Raises:
        VmmDiedError: if so; the record says what was seen, and the live disk is kept.
    """
    seen = observed(store, instance.record)
    if seen.state is not State.FAILED:
        return
    with signals_held():
        instance.put_back(msgspec.structs.replace(seen, pending=None))
    raise VmmDiedError(
        f"{seen.name!r} is down, but did not shut down in order: {seen.failure_detail}",
        hint=f"`ramet logs {seen.name}` shows the guest's console; `ramet start {seen.name}` boots its disk.",
    )


def _kill(name: str) -> str:
    return f"`ramet stop --force {name}` kills it in the end, as a power cut would."


def _discard_memory(store: Store, instance: Locked, *, allowed: bool) -> None:
    record = instance.record
    if not allowed:
        raise StateError(
            f"Cannot stop {record.name!r}: it is standby, and stopping it loses the memory that it sleeps with.",
            actual=record.state.value,
            required=[State.RUNNING.value, State.PAUSED.value],
            hint=f"If that is what you want: ramet stop {record.name} --discard-memory. {next_step(record)}",
        )
    with store.collecting(record), instance.pending("stop"), store.reading(snapshot_of(record)) as snapshot:
        manifests.load(snapshot)
        with host_errors(f"replace {instance.paths.disk}"):
            instance.paths.disk.unlink(missing_ok=True)
        derive(snapshot.disk, instance.paths.disk, allow=ANY_METHOD, durable=True)
        instance.change(state=State.STOPPED, pending=None, snapshot=None)
