"""What is true of an instance whose VMM is gone: readers and verbs must say the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from ramet.instances import observe
from ramet.instances.context import Store
from ramet.model import Failure, State, VmmProcess
from ramet.store import atomic
from tests.unit.snapshots.published import INSTANCE, record

GONE = VmmProcess(pid=1, start_time_ticks=1, boot_id="another boot")


@pytest.mark.parametrize(
    ("pending", "state", "failure"),
    [
        (None, State.FAILED, Failure.VMM_LOST),
        ("stop", State.FAILED, Failure.VMM_LOST),
        (observe.FORCED_STOP, State.STOPPED, None),
    ],
)
def test_a_vmm_that_a_killed_stop_has_ended_was_not_lost(
    tmp_path: Path, pending: str | None, state: State, failure: Failure | None
) -> None:
    store = Store(tmp_path / "home")
    paths = store.paths.instance(INSTANCE)
    for directory in (paths.dir, paths.work, paths.run, paths.logs):
        directory.mkdir()
    (paths.run / "qemu.alive").touch()  # QEMU removes it if it ends in order
    made = record(vmm=GONE, pending=pending)
    atomic.write_json(paths.record, made)
    seen = observe.look(store, made)
    settled = observe.settle(store, made)
    assert (seen.state, seen.failure) == (settled.state, settled.failure) == (state, failure)
    assert settled.pending is None
    assert store.read(INSTANCE) == settled
