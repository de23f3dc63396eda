"""What is told of live instances, of whose VMMs nothing is believed."""

from __future__ import annotations

import os

from ramet import process
from ramet.instances import inspect
from ramet.model import State, VmmProcess
from tests.unit.instances.place import Place


def test_a_vmm_that_has_emptied_its_memory_file_does_not_keep_others_from_being_listed(place: Place) -> None:
    ticks = process.start_time_ticks(os.getpid())
    assert ticks is not None
    vmm = VmmProcess(pid=os.getpid(), start_time_ticks=ticks, boot_id=process.boot_id())
    place.change(state=State.RUNNING, vmm=vmm, mapped_snapshot=place.snapshot_id)
    place.paths.memory.touch()
    [found] = inspect.all_instances(place.store)
    assert found.state is State.RUNNING
    assert found.mapped_memory is None
