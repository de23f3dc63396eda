"""What a killed command leaves in the store as a whole, and the next one does about it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from ramet.instances import birth
from ramet.instances.context import Chore, Store
from ramet.instances.tidy import tidy
from ramet.model import Hypervisor, InstanceRecord, State
from ramet.store import atomic, names
from ramet.store.locks import locked

SNAPSHOT, INSTANCE = "a" * 12, "1" * 12
RECORD = InstanceRecord(
    id=INSTANCE,
    name="web",
    state=State.STANDBY,
    created_at_unix_s=0.0,
    hypervisor=Hypervisor.QEMU,
    image="0" * 64,
    memory_mib=128,
    cpus=1,
    disk_bytes=0,
    machine_id="0" * 32,
    snapshot=SNAPSHOT,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


def in_another(store: Store, *, publishes: bool = False, has_name: bool = False) -> None:
    """A command that is killed while it publishes a snapshot, or else while it makes or removes an instance."""
    pid = os.fork()
    if pid == 0:
        held = store.publishing(SNAPSHOT) if publishes else store.even_if_killed(Chore.REMOVE, INSTANCE)
        with held:
            if publishes:
                store.paths.snapshot(SNAPSHOT).dir.mkdir()
            else:
                make_instance(store, has_name=has_name)
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def make_instance(store: Store, *, has_name: bool) -> None:
    directory = store.paths.instance(INSTANCE).dir
    directory.mkdir()
    birth.make_directories(directory)
    atomic.write_json(directory / "instance.json", RECORD)
    if has_name:
        names.claim(store.paths.instance_names, RECORD.name, INSTANCE, what="instance")


def chores(store: Store) -> list[str]:
    return [path.name for path in store.paths.locks.iterdir() if path.name.startswith(tuple(Chore))]


def test_a_snapshot_that_nothing_refers_to_yet_goes(store: Store) -> None:
    in_another(store, publishes=True)
    assert len(chores(store)) == 1
    tidy(store)
    assert not store.paths.snapshot(SNAPSHOT).dir.exists()
    assert chores(store) == []


def test_one_that_something_refers_to_stays(store: Store) -> None:
    in_another(store, publishes=True)
    make_instance(store, has_name=True)
    tidy(store)
    assert store.paths.snapshot(SNAPSHOT).dir.is_dir()
    assert chores(store) == []


def test_one_whose_command_is_at_work_stays(store: Store) -> None:
    with store.publishing(SNAPSHOT):
        store.paths.snapshot(SNAPSHOT).dir.mkdir()
        tidy(store)
        assert store.paths.snapshot(SNAPSHOT).dir.is_dir()
        assert len(chores(store)) == 1
    assert chores(store) == []


@pytest.mark.parametrize("has_name", [False, True])
def test_an_instance_that_is_not_whole_goes_and_its_snapshot_with_it(store: Store, has_name: bool) -> None:
    in_another(store, publishes=False, has_name=has_name)
    store.paths.snapshot(SNAPSHOT).dir.mkdir()
    tidy(store)
    for directory in (store.paths.instances, store.paths.snapshots, store.paths.instance_names):
        assert list(directory.iterdir()) == []
    assert chores(store) == []


def test_one_whose_record_is_damaged_goes_too(store: Store) -> None:
    in_another(store, has_name=True)
    store.paths.instance(INSTANCE).record.write_bytes(b"{")
    tidy(store)
    assert list(store.paths.instances.iterdir()) == []
    assert list(store.paths.instance_names.iterdir()) == []


@pytest.mark.parametrize("publishes", [False, True], ids=["an instance", "a snapshot"])
def test_one_that_another_command_has_locked_is_left_to_the_next(store: Store, publishes: bool) -> None:
    in_another(store, publishes=publishes)
    key = f"snapshot-{SNAPSHOT}" if publishes else f"instance-{INSTANCE}"
    where = store.paths.snapshot(SNAPSHOT).dir if publishes else store.paths.instance(INSTANCE).dir
    with locked(store.paths.locks, key, exclusive=False):
        tidy(store)
        assert where.is_dir()
    tidy(store)
    assert not where.exists()
    assert chores(store) == []


@pytest.mark.parametrize("name", ["collect-..-x", "remove-.-x", "collect-web-x", "collect-", "remove"])
def test_a_lock_of_another_form_is_none_of_ours(store: Store, name: str) -> None:
    make_instance(store, has_name=False)
    (store.paths.locks / name).touch()
    tidy(store)
    assert store.paths.instance(INSTANCE).dir.is_dir()
    assert store.paths.snapshots.is_dir()
