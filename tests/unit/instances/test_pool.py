"""Pools with no VM behind them: what is claimed, refused, skipped, and tidied up."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ramet import Host, process
from ramet.errors import ConfigError, ConflictError, NotFoundError, StateError
from ramet.instances import birth, claim, observe, pool
from ramet.model import Ancestor, Failure, Hypervisor, InstanceRecord, MemoryPolicy, State, VmmProcess
from ramet.store import atomic, chores, names
from ramet.store.chores import Kind
from tests.unit.children import run_in_child
from tests.unit.instances.place import INSTANCE, Place

GONE = VmmProcess(pid=1, start_time_ticks=1, boot_id="another boot")


@pytest.fixture
def alive() -> Iterator[VmmProcess]:
    """A process that is there, and stands for a VMM."""
    with subprocess.Popen(["sleep", "60"]) as child:
        ticks = process.start_time_ticks(child.pid)
        assert ticks is not None
        yield VmmProcess(pid=child.pid, start_time_ticks=ticks, boot_id=process.boot_id())
        child.kill()


def park(place: Place, number: int, vmm: VmmProcess | None, **changes: object) -> InstanceRecord:
    """A parked fork of ``web``, by its record alone."""
    one = f"{number:x}" * 12
    parent = Ancestor(instance_id=INSTANCE, name="web", snapshot_id=place.snapshot_id)
    made = msgspec.structs.replace(
        place.record,
        id=one,
        name=one,
        state=State.PARKED,
        pool=INSTANCE,
        lineage=(parent,),
        created_at_unix_s=float(number),
        mapped_snapshot=place.snapshot_id,
        vmm=vmm,
    )
    made = msgspec.structs.replace(made, **changes)
    paths = place.store.paths.instance(one)
    paths.dir.mkdir(mode=0o700)
    birth.make_directories(paths.dir)
    atomic.write_json(paths.record, made)
    names.claim(place.store.paths.instance_names, made.name, one, what="instance")
    return made


def test_what_is_in_a_pool_is_told_apart(place: Place, alive: VmmProcess) -> None:
    fresh, lost = park(place, 5, alive), park(place, 6, GONE)
    older = Ancestor(instance_id=INSTANCE, name="web", snapshot_id="9" * 12)
    stale = park(place, 7, alive, lineage=(older,))
    park(place, 8, None, state=State.STANDBY)  # in the making
    found = pool.show(place.store, "web")
    assert (found.parked, found.stale, found.lost) == ((fresh.id,), (stale.id,), (lost.id,))
    assert found.snapshot == place.snapshot_id
    assert found.own_memory_bytes > 0
    assert pool.all_pools(place.store) == [found]


def test_a_lost_one_says_that_nothing_is_lost_and_the_store_check_mends_its_record(place: Place) -> None:
    one = park(place, 5, GONE)
    seen = observe.look(place.store, one)
    assert (seen.state, seen.failure) == (State.FAILED, Failure.VMM_LOST)
    assert seen.failure_detail is not None
    assert "nothing is lost" in seen.failure_detail
    place.problems(repair=True)
    assert place.problems() == ()
    assert pool.show(place.store, "web").lost == (one.id,)


@pytest.mark.parametrize("state", [State.RUNNING, State.STOPPED])
def test_forks_of_a_source_that_woke_are_not_given_out(place: Place, alive: VmmProcess, state: State) -> None:
    park(place, 5, alive)
    place.change(state=state, vmm=alive if state is State.RUNNING else None)
    with pytest.raises(StateError, match="older snapshot: web is") as caught:
        claim.claim(place.store, "web", (), count=None, on_result=lambda *_: None)
    assert caught.value.actual == state.value
    assert caught.value.required == ("standby",)
    with pytest.raises(StateError, match="Cannot park forks of 'web'"):
        pool.fill(place.store, "web", size=1, memory_policy=MemoryPolicy.CLONE)
    assert len(pool.show(place.store, "web").stale) == 1


def test_a_pool_whose_source_was_deleted_can_be_seen_and_emptied(place: Place) -> None:
    one = park(place, 5, GONE, state=State.FAILED)
    Host(place.store.paths.home).remove("web")
    found = pool.show(place.store, "web")
    assert (found.source_id, found.why, found.lost) == (INSTANCE, "web was deleted", (one.id,))
    with pytest.raises(StateError, match="web was deleted"):
        pool.fill(place.store, "web", size=1, memory_policy=MemoryPolicy.CLONE)
    with pytest.raises(NotFoundError):
        claim.claim(place.store, "web", (), count=None, on_result=lambda *_: None)
    assert pool.fill(place.store, "web", size=0, memory_policy=MemoryPolicy.CLONE).lost == ()
    assert list(place.store.paths.instances.iterdir()) == []
    with pytest.raises(NotFoundError):
        pool.show(place.store, "web")


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
