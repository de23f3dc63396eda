"""What is true now, whatever the record says.

``observed`` looks and changes nothing (for readers, who hold no lock); ``settle`` also mends what a killed command left (for
verbs, who hold the lock). ``exclusive`` and ``shared`` are how verbs get it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from ramet import process
from ramet.errors import GuestError, HostError, RametError, VmmError
from ramet.hypervisors import users
from ramet.instances import console_log, guest, live_files
from ramet.instances.context import Locked, Store
from ramet.model import Failure, InstanceRecord, State, VmmProcess
from ramet.paths import InstancePaths
from ramet.store import names
from ramet.store.locks import DEFAULT_TIMEOUT_S, locked

log = logging.getLogger("ramet.instances")
LIVE = (State.RUNNING, State.PAUSED)
HAS_VMM = (*LIVE, State.PARKED)
VMM_LOST = (
    "The VMM ended without its guest having shut down (killed, crashed, or the host was booted anew). "
    "The live disk is newer than the last snapshot."
)
PARKED_LOST = (
    "Its VMM ended while it was parked (killed, crashed, or the host was booted anew). "
    "Its workload had not run: nothing is lost."
)
CLAIM = "fork --from-pool"
"""``pending`` of a parked fork while it is claimed."""
FORCED_STOP = "stop --force"
"""``pending`` once a verb is to kill the VMM, and does it: if it is killed itself, a VMM that is gone was not lost."""


def is_live(record: InstanceRecord) -> bool:
    """Whether it runs or is paused: a VMM has what no snapshot has."""
    return record.state in LIVE


@contextmanager
def exclusive(store: Store, name: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Iterator[Locked]:
    """Lock an instance for a verb and bring its record up to what is true. If the verb fails with its VM not live, what is left
    of it is tidied up at once; of a live one, the next command does that.

    Raises:
        LockedError: if another command keeps it for ``timeout_s``.
    """
    instance_id = store.find(name)
    with locked(store.paths.locks, f"instance-{instance_id}", timeout_s=timeout_s):
        instance = Locked(store, settle(store, store.read(instance_id)))
        try:
            yield instance
        except RametError:
            if instance.record.pending is not None and not is_live(instance.record):
                settle_after_failure(instance)  # of a live one, the next command does it: its VMM may not answer
            raise


def settle_after_failure(instance: Locked) -> None:
    """What the next command would do first; the error that is on its way is what is told."""
    try:
        instance.record = settle(instance.store, instance.store.read(instance.record.id))
    except RametError as err:
        log.info("%s: the next command tidies up: %s", instance.record.name, err)


@contextmanager
def shared(store: Store, name: str) -> Iterator[InstanceRecord]:
    """Lock an instance against change, for reading it; the record says what is true now, and nothing is left half-way."""
    instance_id = store.find(name)
    record = store.read(instance_id)
    if record.pending is not None or (record.vmm is not None and record.state not in HAS_VMM):
        with exclusive(store, name):
            pass
    with locked(store.paths.locks, f"instance-{instance_id}", exclusive=False):
        yield observed(store, store.read(instance_id))


def observed(store: Store, record: InstanceRecord) -> InstanceRecord:
    """``record`` with the state that is true now: its VMM may have gone since the record was written."""
    if record.state not in HAS_VMM or (record.vmm is not None and process.is_alive(record.vmm)):
        return record
    paths = store.paths.instance(record.id)
    gone = msgspec.structs.replace(record, vmm=None, mapped_snapshot=None, diff_base=None)
    if record.state is State.PARKED:
        return msgspec.structs.replace(gone, state=State.FAILED, failure=Failure.VMM_LOST, failure_detail=PARKED_LOST)
    stopped = msgspec.structs.replace(gone, state=State.STOPPED, snapshot=None)
    if record.pending == FORCED_STOP:
        return stopped
    failure, detail = Failure.GUEST_PANICKED, console_log.panic(paths, record.console_offset_bytes)
    if detail is None:
        if store.driver(record.hypervisor).ended_by_guest(paths.run, paths.vmm_log):
            return stopped
        failure, detail = Failure.VMM_LOST, VMM_LOST
    return msgspec.structs.replace(gone, state=State.FAILED, failure=failure, failure_detail=detail)


def look(store: Store, record: InstanceRecord) -> InstanceRecord:
    """What is true of an instance now, for a reader that holds no lock and has just read its record.

    A verb may end the VMM between the reading of the record and the look at the process: then the record is read again.
    """
    while (seen := observed(store, record)) is not record and (again := store.read(record.id)) != record:
        record = again
    return seen


def settle(store: Store, record: InstanceRecord) -> InstanceRecord:
    """Bring the record up to what is true and mend what a killed command left. Call with the instance's exclusive lock.

    A guest found frozen is thawed and runs on (H43, H71); a VMM that no record owns is reaped; a half-made instance is failed.
    """
    was = record
    if may_have_other_names(record):
        free_other_names(store, record)
    remove_half_records(store.paths.instance(record.id).dir)
    if record.pending is not None:
        record = _mend(store, record, record.pending)
    record = observed(store, record)
    if record.state not in HAS_VMM and was.vmm is not None:
        end_vmm(store.paths.instance(record.id), was.vmm)  # it may have ended by itself, and not all that it started
    if record.state not in HAS_VMM and record.vmm is not None:
        record = msgspec.structs.replace(record, vmm=None)
        live_files.clear(store.paths.instance(record.id), keep_disk=record.state is not State.STANDBY)
    if record.state is State.STOPPED and was.state in HAS_VMM:
        try:
            live_files.sync_disk(store.paths.instance(record.id))
        except HostError as err:
            log.warning("%s: what its guest wrote last may be lost: %s", record.name, err.message)
    if record != was:
        with store.collecting(was):
            Locked(store, was).put_back(record)
    return record


def may_have_other_names(record: InstanceRecord) -> bool:
    """Whether a claim may have been cut short that had taken a name for it: by a kill, or by a crash of the host, after which
    the name can be there without the record that says so.
    """
    is_alive = record.vmm is not None and process.is_alive(record.vmm)
    return record.pending == CLAIM or (record.state is State.PARKED and not is_alive)


def free_other_names(store: Store, record: InstanceRecord) -> None:
    """Free all names that mean this instance but its own."""
    names.release_others(store.paths.instance_names, record.name, record.id)


def half_records(directory: Path) -> list[Path]:
    """What is left of a record of this instance whose writer was killed; call with its lock, or it may be being written."""
    return list(directory.glob(".instance.json.????????"))


def remove_half_records(directory: Path) -> None:
    """Nobody needs them."""
    for left in half_records(directory):
        left.unlink(missing_ok=True)


def _mend(store: Store, record: InstanceRecord, verb: str) -> InstanceRecord:
    """Whatever is found here can be found again: a mending that was interrupted itself is begun anew."""
    log.info("%s: `%s` did not end in order; tidying up", record.name, verb)
    paths = store.paths.instance(record.id)
    was, record = record, msgspec.structs.replace(record, pending=None)
    if record.state is State.CREATED:
        reap_strays(paths.run)
        end_vmm(paths, record.vmm)
        return msgspec.structs.replace(
            record,
            vmm=None,
            state=State.FAILED,
            failure=Failure.CREATE_FAILED,
            failure_detail="`ramet create` was killed before the guest had answered.",
        )
    if record.state is State.PARKED:
        return _park_again(store, record)
    if record.state in LIVE:
        live_files.drop_set_aside_disk(paths)  # the rollback has happened
        if record.vmm is not None and process.is_alive(record.vmm):
            return _run_on(store, record, verb)
        return msgspec.structs.replace(observed(store, was), pending=None)  # as every reader has seen it
    reap_strays(paths.run)
    end_vmm(paths, None)
    live_files.put_back_set_aside_disk(paths)
    live_files.clear(paths, keep_disk=record.state is not State.STANDBY)
    return record


def _run_on(store: Store, record: InstanceRecord, verb: str) -> InstanceRecord:
    """Let a live guest run on that a verb left half-way between running and paused; one that is paused and stopped stays so."""
    paths = store.paths.instance(record.id)
    try:
        with store.driver(record.hypervisor).connect(paths.run) as monitor:
            if not monitor.vcpus_running():
                if record.state is State.PAUSED:
                    return record
                monitor.resume_vcpus()
        guest.thaw(paths.run)
    except (VmmError, GuestError) as err:
        log.warning("%s: could not resume the guest that `%s` left frozen: %s", record.name, verb, err)
        return msgspec.structs.replace(record, pending=verb)  # the next command tries again
    return msgspec.structs.replace(record, state=State.RUNNING)


def _park_again(store: Store, record: InstanceRecord) -> InstanceRecord:
    """Bring a parked fork to rest whose claim was cut short: its workload is frozen still. It may have taken the identity of the
    generation that the claim gave it, so the next one gives it another. One that cannot be brought to rest is ended, and has lost
    nothing.
    """
    if record.vmm is not None and process.is_alive(record.vmm):
        try:
            with store.driver(record.hypervisor).connect(store.paths.instance(record.id).run) as monitor:
                if monitor.vcpus_running():
                    monitor.stop_vcpus()
        except VmmError as err:
            log.warning("the parked fork %s could not be brought to rest, and is ended: %s", record.id, err.message)
            process.kill_and_wait(record.vmm)
    return msgspec.structs.replace(record, generation=record.generation + 1)


def end_vmm(paths: InstancePaths, vmm: VmmProcess | None) -> None:
    """End the VMM of an instance, if there is one, and whatever it has started, which nothing else would end.

    Raises:
        HostError: if something does not end.
    """
    if vmm is not None:
        process.kill_and_wait(vmm)
    users.end_all_of(paths)


def reap_strays(run_dir: Path) -> None:
    """Kill the VMMs of this instance that its record may not know: their command died before it could write them down."""
    for vmm in process.find_marked(run_dir):
        log.info("reaping VMM %d of %s: %s", vmm.pid, run_dir, process.kill_and_wait(vmm))
