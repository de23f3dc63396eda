"""Pools with no VM behind them: what is claimed, refused, skipped, and tidied up."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import msgspec
import pytest

from ramet import Host
from ramet.errors import (
    ConfigError,
    ConflictError,
    CorruptError,
    InUseError,
    LockedError,
    NotFoundError,
    RoomError,
    StateError,
)
from ramet.instances import claim, context, delete, fork, observe, pool, pools, room
from ramet.instances.context import Locked
from ramet.instances.room import KEPT_BYTES, Room
from ramet.model import Ancestor, Failure, Hypervisor, MemoryPolicy, PoolInfo, State, VmmProcess
from ramet.states import START_STATES, TARGET_STATE, Verb
from ramet.store import atomic, chores, names
from ramet.store.chores import Kind
from ramet.store.locks import locked
from tests.unit.children import run_in_child
from tests.unit.instances.parked import GONE, park
from tests.unit.instances.place import INSTANCE, OTHER, Place


def test_what_is_in_a_pool_is_told_apart(place: Place, alive: VmmProcess) -> None:
    fresh, lost = park(place, 5, alive), park(place, 6, GONE)
    older = Ancestor(instance_id=INSTANCE, name="web", snapshot_id="9" * 12)
    stale = park(place, 7, alive, lineage=(older,))
    park(place, 8, None, state=State.STANDBY)  # in the making
    found = pools.show(place.store, "web")
    assert (found.parked, found.stale, found.lost) == ((fresh.id,), (stale.id,), (lost.id,))
    assert found.snapshot == place.snapshot_id
    assert found.own_memory_bytes > 0
    assert pools.all_pools(place.store) == [found]


def test_a_lost_one_says_that_nothing_is_lost_and_the_store_check_mends_its_record(place: Place) -> None:
    one = park(place, 5, GONE)
    seen = observe.look(place.store, one)
    assert (seen.state, seen.failure) == (State.FAILED, Failure.VMM_LOST)
    assert seen.failure_detail is not None
    assert "nothing is lost" in seen.failure_detail
    place.problems(repair=True)
    assert place.problems() == ()
    assert pools.show(place.store, "web").lost == (one.id,)


@pytest.mark.parametrize("state", [State.RUNNING, State.STOPPED])
def test_forks_of_a_source_that_woke_are_not_given_out(place: Place, alive: VmmProcess, state: State) -> None:
    park(place, 5, alive)
    place.change(state=state, vmm=alive if state is State.RUNNING else None)
    with pytest.raises(StateError, match="earlier snapshot: web is") as caught:
        claim.claim(place.store, "web", (), count=None, on_result=lambda *_: None)
    assert caught.value.actual == state.value
    assert caught.value.required == ("standby",)
    with pytest.raises(StateError, match="Cannot park forks of 'web'"):
        pool.fill(place.store, "web", size=1, memory_policy=MemoryPolicy.CLONE)
    assert len(pools.show(place.store, "web").stale) == 1


@pytest.mark.parametrize("state", [State.RUNNING, State.PAUSED, State.STOPPED, State.FAILED])
def test_what_a_source_is_told_to_do_it_can_do(place: Place, alive: VmmProcess, state: State) -> None:
    """Each verb that a hint names starts from the state that the source is in, or from the one that it leads to."""
    vmm = alive if state in observe.LIVE else None
    place.change(state=state, vmm=vmm, failure=Failure.VMM_LOST if state is State.FAILED else None)
    hints = []
    for ask in (
        lambda: pool.fill(place.store, "web", size=1, memory_policy=MemoryPolicy.CLONE),
        lambda: claim.claim(place.store, "web", (), count=None, on_result=lambda *_: None),
    ):
        with pytest.raises(StateError) as caught:
            ask()
        hints.append(str(caught.value.hint))
    park(place, 5, alive)
    with pytest.raises(StateError, match="stale") as caught:
        claim.claim(place.store, "web", (), count=None, on_result=lambda *_: None)
    hints.append(str(caught.value.hint))
    for hint in hints:
        now = state
        for verb in re.findall(r"ramet (start|standby|snapshot create|fork) web", hint):
            assert now in START_STATES[Verb(verb)], hint
            now = TARGET_STATE.get(Verb(verb), now)
    assert "ramet standby web" in hints[0]
    assert "ramet standby web" in hints[1]


def test_a_pool_whose_source_was_deleted_can_be_seen_and_emptied(place: Place) -> None:
    one = park(place, 5, GONE, state=State.FAILED)
    Host(place.store.paths.home).remove("web")
    with pytest.raises(NotFoundError, match=f"ramet pool {INSTANCE}"):
        pools.show(place.store, "web")
    found = pools.show(place.store, INSTANCE)
    assert (found.source, found.source_id, found.lost) == (INSTANCE, INSTANCE, (one.id,))
    assert found.why == f"web ({INSTANCE}) was deleted"
    with pytest.raises(StateError, match="was deleted") as caught:
        pool.fill(place.store, INSTANCE, size=1, memory_policy=MemoryPolicy.CLONE)
    assert caught.value.hint == f"`ramet pool {INSTANCE} --size 0` empties its pool."
    with pytest.raises(NotFoundError):
        claim.claim(place.store, "web", (), count=None, on_result=lambda *_: None)
    assert pool.fill(place.store, INSTANCE, size=0, memory_policy=MemoryPolicy.CLONE).lost == ()
    assert list(place.store.paths.instances.iterdir()) == []
    with pytest.raises(NotFoundError):
        pools.show(place.store, INSTANCE)


def test_the_pool_of_one_that_was_deleted_is_not_that_of_a_new_one_of_its_name(
    place: Place, vmms: Callable[[], VmmProcess]
) -> None:
    one = park(place, 5, vmms())
    Host(place.store.paths.home).remove("web")
    place.make_another("web")
    two = park(place, 6, vmms(), pool=OTHER, lineage=(Ancestor(instance_id=OTHER, name="web", snapshot_id=None),))
    assert {(found.source, found.stale) for found in pools.all_pools(place.store)} == {
        (INSTANCE, (one.id,)),
        ("web", (two.id,)),
    }
    pool.fill(place.store, "web", size=0, memory_policy=MemoryPolicy.CLONE)
    assert pools.show(place.store, INSTANCE).stale == (one.id,)


@pytest.mark.parametrize(("wanted", "said"), [(1, "No fork of 'web' is parked, and 1 is"), (3, "No fork")])
def test_an_empty_pool_is_an_error_and_no_slow_fork(place: Place, wanted: int, said: str) -> None:
    with pytest.raises(ConflictError, match=said) as caught:
        claim.claim(place.store, "web", (), count=wanted, on_result=lambda *_: None)
    assert caught.value.hint is not None
    assert "ramet pool web --size" in caught.value.hint


def test_what_is_being_made_or_undone_cannot_be_claimed(place: Place, alive: VmmProcess) -> None:
    one = park(place, 5, alive)
    with (
        chores.noted(place.store.paths.locks, Kind.REMOVE, one.id),
        pytest.raises(ConflictError, match="No fork of 'web' is parked"),
    ):
        claim.claim(place.store, "web", (), count=None, on_result=lambda *_: None)


@pytest.mark.parametrize("size", [-1, 1001])
def test_no_size(place: Place, size: int) -> None:
    with pytest.raises(ConfigError, match="no size of a pool"):
        pool.fill(place.store, "web", size=size, memory_policy=MemoryPolicy.CLONE)


@pytest.mark.parametrize(
    "choices", [{"partial": True}, {"hypervisor": Hypervisor.QEMU}, {"memory_policy": MemoryPolicy.SHARE}]
)
def test_what_was_chosen_when_it_was_parked_cannot_be_chosen_again(tmp_path: Path, choices: dict[str, object]) -> None:
    host = Host(tmp_path / "home")
    with pytest.raises(ConfigError, match="A parked fork is what it was made"):
        host.fork("web", from_pool=True, **choices)  # type: ignore[arg-type]


def test_a_claim_that_was_killed_leaves_one_name(place: Place) -> None:
    """Both before the record says that it runs, and its VMM has ended since, and after it."""
    one = park(place, 5, GONE, pending=observe.CLAIM)
    names.claim(place.store.paths.instance_names, "blue", one.id, what="instance")
    with observe.exclusive(place.store, "blue") as instance:
        assert instance.record.state is State.FAILED
        assert instance.record.pending is None
    assert set(names.all_names(place.store.paths.instance_names)) == {"web", one.id}
    two = park(place, 6, GONE, state=State.RUNNING, pending=observe.CLAIM)
    renamed = msgspec.structs.replace(two, name="green", pool=None)
    atomic.write_json(place.store.paths.instance(two.id).record, renamed)
    names.claim(place.store.paths.instance_names, "green", two.id, what="instance")
    with observe.exclusive(place.store, "green"):
        pass
    assert set(names.all_names(place.store.paths.instance_names)) == {"web", one.id, "green"}


def test_the_next_command_of_any_kind_frees_the_name_that_a_killed_claim_had_taken(place: Place) -> None:
    """Its user gives that name again."""
    one = park(place, 5, GONE)

    def claim_and_die() -> None:
        with (
            place.store.ended_if_killed(Kind.SETTLE, one.id),
            observe.exclusive(place.store, one.id) as instance,
        ):
            instance.put_back(msgspec.structs.replace(one, pending=observe.CLAIM))
            names.claim(place.store.paths.instance_names, "blue", one.id, what="instance")
            os.kill(os.getpid(), signal.SIGKILL)

    assert run_in_child(claim_and_die) == -signal.SIGKILL
    host = Host(place.store.paths.home)
    assert not host.exists("blue")
    assert place.store.read(one.id).pending is None
    assert list(place.store.paths.locks.glob("chore-*")) == []


def fill(place: Place, size: int) -> PoolInfo:
    return pool.fill(place.store, "web", size=size, memory_policy=MemoryPolicy.CLONE)


def test_what_the_source_became_while_the_pool_was_waited_for_counts(
    place: Place, alive: VmmProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = park(place, 5, alive)

    @contextmanager
    def waited_for(directory: Path, key: str, **choices: object) -> Iterator[None]:
        assert key == f"instance-{INSTANCE}-pool"
        assert not choices
        with locked(directory, key):
            place.change(state=State.STOPPED, snapshot=None)
            yield

    monkeypatch.setattr(pool, "locked", waited_for)
    with pytest.raises(StateError, match="web is stopped"):
        fill(place, 1)
    assert pools.show(place.store, "web").stale == (one.id,), "nothing was touched"


def test_the_source_stays_asleep_from_the_look_until_its_forks_are_made(
    place: Place, alive: VmmProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = Ancestor(instance_id=INSTANCE, name="web", snapshot_id="9" * 12)
    park(place, 5, alive, lineage=(older,))
    kept: list[str] = []

    def look(*_arguments: object) -> None:
        with pytest.raises(LockedError), locked(place.store.paths.locks, f"instance-{INSTANCE}", timeout_s=0):
            raise AssertionError("the source is locked by nobody")
        kept.append("")

    def take_away(instance: Locked) -> None:
        look()
        delete.take_away(instance)

    monkeypatch.setattr(pool, "take_away", take_away)
    monkeypatch.setattr(fork, "from_published", look)
    assert fill(place, 1).stale == ()
    assert len(kept) == 2, "while the stale one was removed, and while another was made"


def test_one_more_is_not_begun_where_another_like_those_there_does_not_fit(
    place: Place, alive: VmmProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = park(place, 5, alive)
    asked: list[int | None] = []

    def full(_home: Path, _files: object, pid: int | None) -> Room:
        asked.append(pid)
        return Room(memory_bytes=KEPT_BYTES, memory_each=1, disk_bytes=0, disk_each=0)

    monkeypatch.setattr(room, "look", full)
    with pytest.raises(RoomError, match="room for 0 of 1 forks") as caught:
        fill(place, 2)
    assert caught.value.hint == "Park fewer: --size."
    assert asked == [alive.pid]
    assert pools.show(place.store, "web").parked == (one.id,)


def test_the_pool_of_a_damaged_source_keeps_its_name(place: Place) -> None:
    one = park(place, 5, GONE)
    place.paths.record.write_bytes(b"{")
    found = pools.show(place.store, "web")
    assert (found.source, found.source_id, found.lost) == ("web", INSTANCE, (one.id,))
    assert found.why is not None
    assert pools.all_pools(place.store) == [found]
    assert pools.show(place.store, INSTANCE) == found
    with pytest.raises(StateError, match="Cannot park forks of 'web'"):
        fill(place, 1)
    assert fill(place, 0).lost == ()
    with pytest.raises(CorruptError):
        pools.show(place.store, "web")


def test_the_pool_of_a_snapshot_that_was_deleted_is_found(place: Place, alive: VmmProcess) -> None:
    names.claim(place.store.paths.snapshot_names, "golden", place.snapshot_id, what="snapshot")
    park(place, 5, alive, pool=place.snapshot_id, mapped_snapshot=None, snapshot=None)
    host = Host(place.store.paths.home)
    assert not host.list()[1].stale
    host.remove("web")
    assert len(host.pool_get("snapshot:golden").parked) == 1
    assert [one.source for one in host.pools()] == ["snapshot:golden"]
    host.snapshot_remove("golden")
    assert host.list()[0].stale
    with pytest.raises(NotFoundError, match=f"Of snapshots .*`ramet pool snapshot:{place.snapshot_id}`"):
        host.pool_get("snapshot:golden")
    assert host.pool(f"snapshot:{place.snapshot_id}", size=0).stale == ()
    assert host.list() == []


def test_a_snapshot_whose_manifest_is_damaged_has_a_pool_that_can_be_emptied(place: Place) -> None:
    names.claim(place.store.paths.snapshot_names, "golden", place.snapshot_id, what="snapshot")
    park(place, 5, GONE, pool=place.snapshot_id)
    place.snapshot.manifest.chmod(0o600)
    place.snapshot.manifest.write_bytes(b"{")
    assert pool.fill(place.store, "snapshot:golden", size=0, memory_policy=MemoryPolicy.CLONE).lost == ()
    assert pools.all_pools(place.store) == []


def test_a_parked_fork_stands_for_its_pool(place: Place, alive: VmmProcess) -> None:
    one, two = park(place, 5, alive), park(place, 6, GONE)
    assert pools.show(place.store, one.id) == pools.show(place.store, two.id) == pools.show(place.store, "web")


def test_a_fork_is_stale_once_its_source_has_moved_on(place: Place, alive: VmmProcess) -> None:
    one = park(place, 5, alive)
    host = Host(place.store.paths.home)
    assert not host.get(one.id).stale
    place.change(state=State.STOPPED, snapshot=None)
    assert host.get(one.id).stale
    assert [info.stale for info in host.list()] == [False, True]


@pytest.mark.parametrize("verb", ["exec", "standby", "restore", "console"])
def test_what_refuses_a_parked_fork_names_its_source(place: Place, alive: VmmProcess, verb: str) -> None:
    host = Host(place.store.paths.home)
    of_instance = park(place, 5, alive)
    of_snapshot = park(place, 6, alive, pool=place.snapshot_id)
    act: dict[str, Callable[[str], object]] = {
        "exec": lambda name: host.exec(name, ["true"]),
        "standby": host.standby,
        "restore": host.restore,
        "console": host.console_socket,
    }
    for one, source in ((of_instance, "web"), (of_snapshot, f"snapshot:{place.snapshot_id}")):
        with pytest.raises(StateError) as caught:
            act[verb](one.id)
        assert f"`ramet fork {source} --from-pool` claims one" in str(caught.value.hint)


def test_what_holds_a_snapshot_from_a_pool_is_said(place: Place, alive: VmmProcess) -> None:
    park(place, 5, alive, pool=place.snapshot_id)
    with pytest.raises(InUseError, match=f"waits in the pool of snapshot:{place.snapshot_id}") as caught:
        Host(place.store.paths.home).snapshot_remove(place.snapshot_id)
    assert f"`ramet pool snapshot:{place.snapshot_id} --size 0`" in str(caught.value.hint)


def test_a_record_that_knows_no_source_is_stale_and_keeps_nobody_from_looking(place: Place, alive: VmmProcess) -> None:
    one = park(place, 5, alive, pool=OTHER, lineage=())
    assert Host(place.store.paths.home).get(one.id).stale
    assert [found.source for found in pools.all_pools(place.store)] == [OTHER]


@pytest.mark.parametrize("is_filled", [False, True])
def test_a_snapshot_that_only_lost_forks_share_is_there_until_others_were_made(
    place: Place, monkeypatch: pytest.MonkeyPatch, is_filled: bool
) -> None:
    """And nobody waits for the reading of it that is one's own (``COLLECT_TIMEOUT_S``)."""
    one = park(place, 5, GONE, pool=place.snapshot_id, memory_policy=MemoryPolicy.SHARE)
    Host(place.store.paths.home).remove("web")
    assert place.snapshot.dir.is_dir(), "the lost one refers to it"
    seen: list[bool] = []

    def make(*_arguments: object) -> None:
        seen.append(place.snapshot.dir.is_dir() and not place.store.paths.instance(one.id).dir.exists())
        if not is_filled:
            raise ConflictError("None can be made.")
        park(place, 6, GONE, pool=place.snapshot_id)

    monkeypatch.setattr(fork, "from_published", make)
    monkeypatch.setattr(context, "COLLECT_TIMEOUT_S", 60.0)
    began = time.monotonic()
    with nullcontext() if is_filled else pytest.raises(ConflictError):
        pool.fill(place.store, f"snapshot:{place.snapshot_id}", size=1, memory_policy=MemoryPolicy.SHARE)
    assert seen == [True]
    assert time.monotonic() - began < 30
    assert place.snapshot.dir.is_dir() == is_filled
