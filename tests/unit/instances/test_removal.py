"""What ``rm`` would do is what it does."""

from __future__ import annotations

import pytest

from ramet.errors import NotFoundError
from ramet.instances.delete import plan, remove
from ramet.model import RemovalPlan, State
from ramet.store import names
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


def test_of_none_there_is_no_plan(place: Place) -> None:
    with pytest.raises(NotFoundError):
        plan(place.store, "wob")
