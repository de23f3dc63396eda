"""What a killed command leaves in the store as a whole, and what the next one does about it."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from ramet import Host
from ramet.errors import HostError, NoSpaceError
from ramet.instances import birth, restore, tidy
from ramet.instances.context import Locked, Store
from ramet.instances.delete import take_away
from ramet.model import State
from ramet.store import atomic, chores, names
from ramet.store.chores import Kind
from ramet.store.locks import locked
from tests.unit.children import run_in_child
from tests.unit.snapshots.published import record
from tests.unit.steps import Steps

SNAPSHOT, INSTANCE, OTHER = "a" * 12, "1" * 12, "2" * 12
RECORD = record(id=INSTANCE, state=State.STANDBY, snapshot=SNAPSHOT)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


def die(store: Store, kind: Kind, *, has_name: bool = False) -> None:
    """A command that is killed while it publishes a snapshot, or makes or removes an instance."""

    def at_work() -> None:
        with store.publishing(SNAPSHOT) if kind is Kind.COLLECT else store.even_if_killed(Kind.REMOVE, INSTANCE):
            if kind is Kind.COLLECT:
                store.paths.snapshot(SNAPSHOT).dir.mkdir()
            else:
                make_instance(store, has_name=has_name)
            os.kill(os.getpid(), signal.SIGKILL)

    assert run_in_child(at_work) == -signal.SIGKILL
    assert len(noted(store)) == 1


def make_instance(store: Store, *, has_name: bool) -> None:
    directory = store.paths.instance(INSTANCE).dir
    directory.mkdir()
    birth.make_directories(directory)
    atomic.write_json(directory / "instance.json", RECORD)
    if has_name:
        names.claim(store.paths.instance_names, RECORD.name, INSTANCE, what="instance")


def noted(store: Store) -> list[Path]:
    """One path of each chore."""
    found = [path for path in store.paths.locks.iterdir() if path.name.startswith(chores.PREFIX)]
    return list({path.stat().st_ino: path for path in found}.values())


def sayings(store: Store) -> list[str]:
    """What all chores are called, without the number by which those of different commands differ."""
    return sorted(path.name.removeprefix(chores.PREFIX)[13:] for path in store.paths.locks.glob(f"{chores.PREFIX}*"))


def is_there(store: Store, kind: Kind) -> bool:
    place = store.paths.snapshot(SNAPSHOT) if kind is Kind.COLLECT else store.paths.instance(INSTANCE)
    return place.dir.is_dir()


def test_a_snapshot_that_nothing_refers_to_yet_goes(store: Store) -> None:
    die(store, Kind.COLLECT)
    tidy.tidy(store)
    assert not is_there(store, Kind.COLLECT)
    assert noted(store) == []


def test_one_that_something_refers_to_stays(store: Store) -> None:
    die(store, Kind.COLLECT)
    make_instance(store, has_name=True)
    with locked(store.paths.locks, f"snapshot-{SNAPSHOT}", exclusive=False):
        tidy.tidy(store)
    assert is_there(store, Kind.COLLECT)
    assert noted(store) == [], "it may lose that reference later, and be all that is left"


@pytest.mark.parametrize("has_name", [False, True])
def test_an_instance_that_is_not_whole_goes_and_its_snapshot_with_it(store: Store, has_name: bool) -> None:
    die(store, Kind.REMOVE, has_name=has_name)
    store.paths.snapshot(SNAPSHOT).dir.mkdir()
    tidy.tidy(store)
    for directory in (store.paths.instances, store.paths.snapshots, store.paths.instance_names):
        assert list(directory.iterdir()) == []
    assert noted(store) == []


def test_one_whose_record_is_damaged_goes_too(store: Store) -> None:
    die(store, Kind.REMOVE, has_name=True)
    store.paths.instance(INSTANCE).record.write_bytes(b"{")
    (store.paths.instance_names / "another").write_bytes(b"../../etc")
    tidy.tidy(store)
    assert list(store.paths.instances.iterdir()) == []
    assert [path.name for path in store.paths.instance_names.iterdir()] == ["another"]


@pytest.mark.parametrize("kind", [Kind.COLLECT, Kind.REMOVE])
def test_what_a_command_is_at_work_on_stays(store: Store, kind: Kind) -> None:
    with store.publishing(SNAPSHOT) if kind is Kind.COLLECT else store.even_if_killed(Kind.REMOVE, INSTANCE):
        store.paths.snapshot(SNAPSHOT).dir.mkdir()
        make_instance(store, has_name=True)
        tidy.tidy(store)
        assert is_there(store, kind)
        assert len(noted(store)) == 1
    assert noted(store) == []


@pytest.mark.parametrize("kind", [Kind.COLLECT, Kind.REMOVE])
def test_what_a_command_has_ended_meanwhile_stays(store: Store, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the listing and the lock: a lock file that is made anew would be free."""
    held = store.even_if_killed(kind, SNAPSHOT if kind is Kind.COLLECT else INSTANCE)
    held.__enter__()
    make_instance(store, has_name=True)
    store.paths.snapshot(SNAPSHOT).dir.mkdir()
    real = chores.abandoned

    def late(path: Path) -> object:
        held.__exit__(None, None, None)
        return real(path)

    monkeypatch.setattr(chores, "abandoned", late)
    tidy.tidy(store)
    assert is_there(store, Kind.COLLECT)
    assert is_there(store, Kind.REMOVE)
    assert noted(store) == []


@pytest.mark.parametrize("kind", [Kind.COLLECT, Kind.REMOVE])
def test_what_another_command_has_locked_is_left_to_the_next(store: Store, kind: Kind) -> None:
    die(store, kind)
    key = f"snapshot-{SNAPSHOT}" if kind is Kind.COLLECT else f"instance-{INSTANCE}"
    with locked(store.paths.locks, key, exclusive=False):
        tidy.tidy(store)
        assert is_there(store, kind)
    tidy.tidy(store)
    assert not is_there(store, kind)
    assert noted(store) == []


@pytest.mark.parametrize("error", [HostError("The disk is gone."), KeyboardInterrupt()], ids=repr)
def test_what_fails_is_left_to_the_next(
    store: Store, error: BaseException, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An unrelated command does not fail for it."""
    die(store, Kind.REMOVE, has_name=True)

    def fail(*_arguments: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(tidy, "take_away", fail)
        if isinstance(error, HostError):
            tidy.tidy(store)
            assert "The disk is gone." in caplog.text
        else:
            with pytest.raises(KeyboardInterrupt):
                tidy.tidy(store)
    assert len(noted(store)) == 1
    tidy.tidy(store)
    assert not is_there(store, Kind.REMOVE)


@pytest.mark.parametrize("damaged", [False, True])
def test_what_was_done_of_a_chore_is_not_done_again(store: Store, damaged: bool) -> None:
    """What was referred to then may be all that is left later."""
    other = "b" * 12
    for one in (SNAPSHOT, other):
        store.paths.snapshot(one).dir.mkdir()
    make_instance(store, has_name=True)  # it refers to SNAPSHOT
    (store.paths.locks / f"{chores.PREFIX}{'0' * 12}-collect-{SNAPSHOT}-{other}").touch()
    if damaged:
        store.paths.instance(OTHER).dir.mkdir()
        store.paths.instance(OTHER).record.write_bytes(b"{")
        tidy.tidy(store)
    else:
        with locked(store.paths.locks, f"snapshot-{other}", exclusive=False):
            tidy.tidy(store)
    assert sayings(store) == [f"collect-{other}"]
    assert store.paths.snapshot(other).dir.is_dir()


def test_a_full_disk_does_not_keep_from_making_room(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    make_instance(store, has_name=True)
    store.paths.snapshot(SNAPSHOT).dir.mkdir()

    def full(*_arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "link", full)
        with pytest.raises(NoSpaceError), store.even_if_killed(Kind.REMOVE, INSTANCE):
            pass
        take_away(Locked(store, RECORD))
    assert list(store.paths.instances.iterdir()) == []
    assert list(store.paths.snapshots.iterdir()) == []
    assert noted(store) == []


@pytest.mark.parametrize("held", ["collecting", "collecting_later", "publishing", "restore"])
def test_a_snapshot_that_cannot_be_deleted_is_left_to_the_next_command(
    store: Store, held: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The verb has happened all the same. No two ways to give a snapshot up may differ in that."""
    blocks: Mapping[str, Callable[[], AbstractContextManager[None]]] = {
        "collecting": lambda: store.collecting(RECORD),
        "collecting_later": lambda: store.collecting_later(SNAPSHOT),
        "publishing": lambda: store.publishing(SNAPSHOT, may_be_unneeded=True),
        "restore": lambda: restore.collecting(store, record(id=INSTANCE), SNAPSHOT),
    }
    store.paths.snapshot(SNAPSHOT).dir.mkdir()

    def fail(*_arguments: object, **_options: object) -> None:
        raise HostError("The disk is gone.")

    with monkeypatch.context() as patched:
        patched.setattr(store, "delete_snapshot", fail)
        with blocks[held]():
            if held == "collecting_later":
                store.collect(SNAPSHOT, chore=None)
    assert f"snapshot {SNAPSHOT} was left: The disk is gone. The next command tries again." in caplog.text
    assert is_there(store, Kind.COLLECT)
    tidy.tidy(store)
    assert not is_there(store, Kind.COLLECT)
    assert noted(store) == []


def test_where_it_cannot_be_noted_either_the_user_is_told(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store.paths.snapshot(SNAPSHOT).dir.mkdir()

    def fail(*_arguments: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with store.ended_if_killed(Kind.COLLECT) as chore, monkeypatch.context() as patched:
        patched.setattr(os, "link", fail)
        patched.setattr(atomic, "fsync_directory", fail)
        store.collect(SNAPSHOT, chore=chore)
    assert f"`ramet snapshot rm {SNAPSHOT}` deletes it." in caplog.text
    assert noted(store) == []


def test_a_removal_that_fails_is_ended_by_the_next_command(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    make_instance(store, has_name=True)

    def fail(*_arguments: object) -> None:
        raise HostError("The disk is gone.")

    with monkeypatch.context() as patched:
        patched.setattr("ramet.instances.delete.discard", fail)
        with pytest.raises(HostError):
            take_away(Locked(store, RECORD))
    assert names.all_names(store.paths.instance_names) == {}
    tidy.tidy(store)
    assert list(store.paths.instances.iterdir()) == []
    assert noted(store) == []


def test_a_chore_that_cannot_be_read_fails_no_command(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    (store.paths.locks / f"{chores.PREFIX}x").mkdir()
    tidy.tidy(store)
    assert "could not be read" in caplog.text


def test_a_store_that_is_gone_is_no_bug(store: Store) -> None:
    """Its file system was unmounted, for example."""
    store.paths.locks.rmdir()
    with pytest.raises(HostError, match="locks"):
        tidy.tidy(store)


def test_several_are_noted_in_one_and_ended_at_once(store: Store) -> None:
    with store.even_if_killed(Kind.REMOVE) as chore:
        chore.add(Kind.REMOVE, INSTANCE)
        chore.add(Kind.COLLECT, SNAPSHOT, None)
        assert sayings(store) == ["", f"collect-{SNAPSHOT}", f"remove-{INSTANCE}"]
    assert noted(store) == []


def test_more_ids_than_a_name_can_hold_have_several(store: Store) -> None:
    ids = [f"{number:012x}" for number in range(100)]
    with store.even_if_killed(Kind.REMOVE, *ids):
        assert chores.noted_ids(store.paths.locks) == set(ids)
        assert len(noted(store)) == 1, "one file, one lock"
        assert len(sayings(store)) == 1 + 13
    assert noted(store) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "-collect",
        "-collect-..",
        "-remove-.",
        "-collect-web",
        "-eat-111111111111",
        "-remove-111111111111x",
        "-coll",
    ],
)
def test_a_chore_that_says_nothing_of_ours_does_nothing(store: Store, text: str) -> None:
    make_instance(store, has_name=False)
    (store.paths.locks / f"{chores.PREFIX}{'0' * 12}{text}").touch()
    tidy.tidy(store)
    assert is_there(store, Kind.REMOVE)
    assert store.paths.snapshots.is_dir()
    assert noted(store) == []


@pytest.mark.parametrize(
    ("text", "goes"),
    [("collect ..\nremove .\neat 111111111111\n\xff\nrem", False), (f"collect {SNAPSHOT}\nremove {INSTANCE}\n", True)],
)
def test_what_an_earlier_version_wrote_into_a_chore_is_done(store: Store, text: str, goes: bool) -> None:
    make_instance(store, has_name=False)
    store.paths.snapshot(SNAPSHOT).dir.mkdir()
    (store.paths.locks / f"{chores.PREFIX}{'0' * 12}").write_bytes(text.encode("latin-1"))
    tidy.tidy(store)
    assert is_there(store, Kind.REMOVE) is not goes
    assert is_there(store, Kind.COLLECT) is not goes
    assert noted(store) == []


@pytest.mark.parametrize("count", [2, 20])
def test_a_chore_with_several_names_ends_at_once(store: Store, count: int) -> None:
    """A fork of many that is killed as it ends has happened or has not: it is its end that decides, and not one name of it."""
    ids = [f"{number:012x}" for number in range(count)]

    def at_work() -> None:
        with store.even_if_killed(Kind.REMOVE) as chore:
            for one in ids:
                chore.add(Kind.REMOVE, one)
                store.paths.instance(one).dir.mkdir()
                birth.make_directories(store.paths.instance(one).dir)
                atomic.write_json(store.paths.instance(one).record, record(id=one, name=f"n{one}"))
            unlink = Path.unlink

            def once(path: Path, *, missing_ok: bool = False) -> None:
                unlink(path, missing_ok=missing_ok)
                os.kill(os.getpid(), signal.SIGKILL)

            pytest.MonkeyPatch().setattr(Path, "unlink", once)

    assert run_in_child(at_work) == -signal.SIGKILL
    tidy.tidy(store)
    assert sorted(path.name for path in store.paths.instances.iterdir()) == ids
    assert noted(store) == []


def test_a_snapshot_that_somebody_reads_is_left_to_the_user(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """A restore may keep it, if it fails: no command may delete it later by itself."""
    store.paths.snapshot(SNAPSHOT).dir.mkdir()
    with (
        pytest.MonkeyPatch.context() as patched,
        locked(store.paths.locks, f"snapshot-{SNAPSHOT}", exclusive=False),
        store.collecting(RECORD),
    ):
        patched.setattr("ramet.instances.context.COLLECT_TIMEOUT_S", 0.1)
    assert f"`ramet snapshot rm {SNAPSHOT}` deletes it." in caplog.text
    tidy.tidy(store)
    assert is_there(store, Kind.COLLECT)


@pytest.mark.parametrize(("kind", "steps"), [(Kind.REMOVE, [("fsync", "locks")]), (Kind.COLLECT, [])])
def test_a_power_cut_brings_no_removal_back(store: Store, kind: Kind, steps: list[tuple[str, str]]) -> None:
    """Its unlinking is made durable before a create or a fork is told to have succeeded. A collection does no harm."""
    with Steps().recorded() as seen, store.even_if_killed(kind, INSTANCE):
        pass
    assert [step for step in seen if step[0] != "link"] == steps


def test_a_host_that_has_been_open_for_long_sees_what_was_killed_since(tmp_path: Path) -> None:
    """Nobody may begin to use what the next command takes away."""
    host = Host(tmp_path / "home")
    store = Store(host.home)
    for look in (host.list, lambda: host.exists("web"), lambda: host.exists(INSTANCE)):
        die(store, Kind.REMOVE, has_name=True)
        assert not look()
        assert not is_there(store, Kind.REMOVE)
