"""Who refers to a snapshot: whether anyone but one instance does decides who may map it."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest

from ramet.errors import CorruptError
from ramet.instances import context
from ramet.instances.context import Store
from ramet.model import InstanceRecord, State
from ramet.store import atomic, names
from ramet.store.locks import locked
from tests.unit.instances.place import Place
from tests.unit.snapshots.published import record

SNAPSHOT = "a" * 12
MINE, OTHER = "1" * 12, "2" * 12


def add(store: Store, instance_id: str, **changes: str) -> Path:
    path = store.paths.instance(instance_id).dir
    path.mkdir()
    fields = {"id": instance_id, "name": f"n{instance_id[0]}", "state": State.STANDBY} | changes
    atomic.write_json(path / "instance.json", record(**fields))
    return path / "instance.json"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


def test_an_instance_s_own_references_are_no_other_s(store: Store) -> None:
    add(store, MINE, snapshot=SNAPSHOT, mapped_snapshot=SNAPSHOT, diff_base=SNAPSHOT)
    add(store, OTHER)
    assert not store.is_needed_by_others(SNAPSHOT, MINE)
    assert store.is_needed_by_others(SNAPSHOT, OTHER)


@pytest.mark.parametrize("role", ["snapshot", "mapped_snapshot", "diff_base"])
def test_any_role_of_another_instance_counts(store: Store, role: str) -> None:
    add(store, MINE, snapshot=SNAPSHOT)
    add(store, OTHER, **{role: SNAPSHOT})
    assert store.is_needed_by_others(SNAPSHOT, MINE)


def test_a_name_counts(store: Store) -> None:
    add(store, MINE, snapshot=SNAPSHOT)
    names.claim(store.paths.snapshot_names, "golden", SNAPSHOT, what="snapshot")
    assert store.is_needed_by_others(SNAPSHOT, MINE)


def test_what_a_damaged_record_refers_to_is_unknown(store: Store) -> None:
    add(store, MINE, snapshot=SNAPSHOT)
    add(store, OTHER).write_text("{")
    with pytest.raises(CorruptError):
        store.is_needed_by_others(SNAPSHOT, MINE)


def test_what_is_needed_is_not_waited_for(
    store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forks that share a snapshot read it while others of them give up their references to it."""
    monkeypatch.setattr(context, "COLLECT_TIMEOUT_S", 60.0)
    add(store, MINE, snapshot=SNAPSHOT)
    store.paths.snapshot(SNAPSHOT).dir.mkdir()
    with locked(store.paths.locks, f"snapshot-{SNAPSHOT}", exclusive=False):
        began = time.monotonic()
        store.collect(SNAPSHOT, chore=None)
        assert time.monotonic() - began < 30
    assert store.paths.snapshot(SNAPSHOT).dir.is_dir()
    assert caplog.records == []


def test_a_damaged_name_keeps_all_and_is_no_error_of_the_verb(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """What has been done is done: a collection warns, and leaves what it cannot judge."""
    (store.paths.snapshot_names / "strange").write_bytes(b"\xff")
    store.paths.snapshot(SNAPSHOT).dir.mkdir()
    store.collect(SNAPSHOT, chore=None)
    assert store.paths.snapshot(SNAPSHOT).dir.is_dir()
    assert "was left" in caplog.text
    assert f"`ramet snapshot rm {SNAPSHOT}` deletes it." in caplog.text


def test_whatever_a_record_needs_has_it_among_its_referrers(place: Place) -> None:
    """Of a new kind of reference both must know, or a snapshot goes that is needed."""
    kinds = [name for name in InstanceRecord.__struct_fields__ if "snapshot" in name or name.endswith("_base")]
    assert kinds == ["snapshot", "mapped_snapshot", "diff_base"]
    ids = {name: format(number, "012x") for number, name in enumerate(kinds, 1)}
    needing = msgspec.structs.replace(place.record, **ids)
    assert set(needing.references) == set(ids.values()) == set(place.store.referrers([needing]))
    assert msgspec.structs.replace(needing, diff_base=needing.snapshot).references == tuple(list(ids.values())[:2])
