"""standby: capture, publish, point the record at it, and only then end the VMM."""

from __future__ import annotations

import logging
from contextlib import ExitStack

from ramet.errors import HostError
from ramet.hypervisors.base import SavesDeviceState, SavesMemory
from ramet.instances import guest, live_files
from ramet.instances.context import Locked, Store
from ramet.instances.observe import end_vmm, exclusive
from ramet.instances.power import reached
from ramet.instances.taking import begun, captured
from ramet.model import State
from ramet.signals import signals_held
from ramet.snapshots.publish import publish
from ramet.states import Verb, require

log = logging.getLogger("ramet.instances")


def standby(store: Store, name: str) -> None:
    """Put an instance to sleep. If anything fails before its record points at the new snapshot, it runs on (or stays paused).

    Raises:
        StateError: if it neither runs nor is paused.
        HostError: NoSpaceError for a full disk, for example; the guest runs on and nothing was kept.
    """
    with exclusive(store, name) as instance:
        if reached(store, instance, Verb.STANDBY):
            return
        require(Verb.STANDBY, instance.record, name=name)
        before = instance.record
        with (
            store.collecting(before),
            instance.pending("standby"),
            instance.driver.connect(instance.paths.run) as monitor,
        ):
            store.say(f"{name}: going to standby")
            _sleep(store, instance, monitor)


def _sleep(store: Store, instance: Locked, monitor: SavesDeviceState | SavesMemory) -> None:
    record = instance.record
    was_paused = record.state is State.PAUSED
    if not was_paused:
        guest.freeze(monitor, instance.paths.run)
    with ExitStack() as held:
        try:
            with begun(instance, monitor, guest_waits=False) as work:
                taken = captured(instance, monitor, work)
                with store.publishing(taken.manifest.id):
                    manifest = taken.summed_up()
                    publish(taken.files.dir, store.paths.snapshot(manifest.id), manifest)
                    held.enter_context(signals_held())
                    instance.change(
                        state=State.STANDBY,
                        snapshot=manifest.id,
                        mapped_snapshot=None,
                        diff_base=None,
                        needs_full=False,
                    )
        except BaseException:
            if store.read(record.id).state is not State.STANDBY and not was_paused:  # what is on disk is the truth
                with signals_held():
                    guest.unfreeze(monitor, instance.paths.run)
            raise
        # From here on the sleep is a fact; a kill leaves a paused VMM that the next command reaps.
        try:
            end_vmm(instance.paths, instance.record.vmm)
            live_files.clear(instance.paths, keep_disk=False)
            instance.change(vmm=None, pending=None)
        except HostError as err:
            log.warning("%s: it sleeps; the next command tidies up after it: %s", record.name, err.message)
