"""Who refers to a snapshot: whether anyone but one instance does decides who may map it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ramet.errors import CorruptError
from ramet.instances.context import Store
from ramet.model import State
from ramet.store import atomic, names
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
