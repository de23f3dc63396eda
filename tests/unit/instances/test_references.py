"""Who refers to a snapshot: whether anyone but one instance does decides who may map it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from ramet.errors import CorruptError
from ramet.instances.context import Store
from ramet.model import Hypervisor, InstanceRecord, State
from ramet.store import atomic, names

SNAPSHOT = "a" * 12
MINE, OTHER = "1" * 12, "2" * 12


def add(store: Store, instance_id: str, **changes: str) -> Path:
    record = InstanceRecord(
        id=instance_id,
        name=f"n{instance_id[0]}",
        state=State.STANDBY,
        created_at_unix_s=0.0,
        hypervisor=Hypervisor.QEMU,
        image="0" * 64,
        memory_mib=128,
        cpus=1,
        disk_bytes=0,
        machine_id="0" * 32,
    )
    record = msgspec.structs.replace(record, **changes)
    path = store.paths.instance(instance_id).dir
    path.mkdir()
    atomic.write_json(path / "instance.json", record)
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
