"""What ``rm`` would do is what it does."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from contextlib import AbstractContextManager

import msgspec
import pytest

from ramet.errors import CorruptError, NotFoundError
from ramet.hypervisors import users
from ramet.instances.context import Store
from ramet.instances.delete import plan, remove
from ramet.instances.inspect import all_instances
from ramet.instances.snapshots import remove as remove_snapshot
from ramet.model import Failure, RemovalPlan, State
from ramet.paths import StorePaths
from ramet.store import atomic, names
from tests.capabilities import requires
from tests.unit.instances.place import INSTANCE, Place


def left(place: Place) -> set[str]:
    return {directory.name for directory in place.store.paths.snapshots.iterdir()}


def test_a_snapshot_that_nothing_else_needs_goes(place: Place) -> None:
    assert plan(place.store, "web") == RemovalPlan(
        id=INSTANCE,
        name="web",
        state=State.STANDBY,
        kills_pid=None,
        deletes_snapshots=(place.snapshot_id,),
        keeps_snapshots={},
    )
    assert left(place) == {place.snapshot_id}, "a plan does nothing"
    remove(place.store, "web", force=True)
    assert left(place) == set()


def test_one_that_has_a_name_stays_and_the_plan_says_why(place: Place) -> None:
    names.claim(place.store.paths.snapshot_names, "golden", place.snapshot_id, what="snapshot")
    found = plan(place.store, "web")
    assert (found.deletes_snapshots, found.keeps_snapshots) == ((), {place.snapshot_id: ("name golden",)})
    remove(place.store, "web", force=True)
    assert left(place) == {place.snapshot_id}


def test_of_a_damaged_one_nobody_knows(place: Place) -> None:
    place.paths.record.write_bytes(b"{")
    found = plan(place.store, "web")
    assert found.state is None
    assert found.damaged is not None
    assert "is damaged" in found.damaged
    remove(place.store, "web", force=True)
    assert left(place) == {place.snapshot_id}


def test_a_lost_record_is_a_damaged_one(place: Place) -> None:
    """It may come back from a backup, and what it needs is there until the instance is given up."""
    other = place.make_another("fork")
    paths = place.store.paths.instance(other.id)
    atomic.write_json(paths.record, msgspec.structs.replace(other, state=State.STANDBY, snapshot=place.snapshot_id))
    backup = paths.record.rename(place.store.paths.home.parent / "backup")
    remove(place.store, "web", force=True)
    assert left(place) == {place.snapshot_id}
    assert [info.failure for info in all_instances(place.store)] == [Failure.RECORD_DAMAGED]
    backup.rename(paths.record)
    assert [info.state for info in all_instances(place.store)] == [State.STANDBY]
    paths.record.unlink()
    with pytest.raises(CorruptError, match="has no record") as caught:
        remove(place.store, "fork", force=False)
    assert f"ramet rm --force {other.id}" in str(caught.value.hint)
    remove(place.store, other.id, force=True)
    assert all_instances(place.store) == []
    assert names.taken(place.store.paths.instance_names) == []


def test_a_snapshot_keeps_its_name_where_nobody_can_tell_who_needs_it(place: Place) -> None:
    names.claim(place.store.paths.snapshot_names, "golden", place.snapshot_id, what="snapshot")
    place.paths.record.write_bytes(b"{")
    with pytest.raises(CorruptError):
        remove_snapshot(place.store, "golden")
    assert names.lookup(place.store.paths.snapshot_names, "golden") == place.snapshot_id
    assert left(place) == {place.snapshot_id}


def test_of_none_there_is_no_plan(place: Place) -> None:
    with pytest.raises(NotFoundError):
        plan(place.store, "wob")


def test_a_removal_that_waits_for_a_reader_can_be_interrupted(place: Place) -> None:
    names.claim(place.store.paths.snapshot_names, "golden", place.snapshot_id, what="snapshot")
    is_waiting = threading.Event()

    def interrupt() -> None:
        is_waiting.wait(60)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    began = time.monotonic()
    store = WaitingStore(is_waiting, paths=place.store.paths)
    thread.start()
    with store.reading(place.snapshot_id), pytest.raises(KeyboardInterrupt):
        remove_snapshot(store, "golden")
    thread.join()
    assert time.monotonic() - began < 30
    assert names.lookup(place.store.paths.snapshot_names, "golden") == place.snapshot_id


class WaitingStore(Store):
    """Says when it is about to wait for those who read a snapshot."""

    def __init__(self, is_waiting: threading.Event, *, paths: StorePaths) -> None:
        super().__init__(paths=paths)
        self._is_waiting = is_waiting

    def deleting(self, snapshot_id: str, *, timeout_s: float = 60) -> AbstractContextManager[None]:
        self._is_waiting.set()
        return super().deleting(snapshot_id, timeout_s=timeout_s)


@requires("root", "vmm-users")
def test_what_a_vmm_has_started_goes_with_its_instance(place: Place) -> None:
    """It bears no mark, and has a session of its own."""
    user = users.user_number(INSTANCE)
    argv = ["/usr/bin/env", "-i", "sleep", "600"]
    with subprocess.Popen(argv, user=user, group=user, extra_groups=(), start_new_session=True) as stray:
        try:
            remove(place.store, "web", force=True)
            assert stray.wait(10) == -signal.SIGKILL
        finally:
            stray.kill()
