"""Claims that go wrong, with guests that are played: whose a fork is, which names it has, what is told, and who is ended."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from ramet import Host, process
from ramet.errors import ConflictError, GuestError, HostError, LockedError, StateError, VmmDiedError, VmmError
from ramet.guests.stream import SessionLostError
from ramet.instances import claim, observe, pools, power, tidy
from ramet.model import Failure, InstanceRecord, State, VmmProcess
from ramet.store import chores, names
from ramet.store.chores import Kind
from ramet.store.locks import locked
from tests.unit.children import run_in_child
from tests.unit.instances.parked import GONE, Guests, failing, park
from tests.unit.instances.place import INSTANCE, Place

pytestmark = pytest.mark.usefixtures("guests")
Vmms = Callable[[], VmmProcess]


def take(place: Place, *wanted: str) -> tuple[str, ...]:
    """The ids of what a claim gets."""
    return claim.claim(place.store, "web", wanted, count=None, on_result=lambda *_: None)[0]


def names_of(place: Place) -> dict[str, str]:
    return names.all_names(place.store.paths.instance_names)


def state_of(place: Place, one: InstanceRecord) -> State:
    return observe.look(place.store, place.store.read(one.id)).state


def noted(place: Place) -> set[str]:
    return chores.noted_ids(place.store.paths.locks)


def test_the_oldest_is_claimed_and_has_one_name(place: Place, vmms: Vmms, guests: Guests) -> None:
    one, two = park(place, 5, vmms()), park(place, 6, vmms())
    assert take(place, "blue") == (one.id,)
    record = place.store.read(one.id)
    assert (record.name, record.state, record.pool, record.pending) == ("blue", State.RUNNING, None, None)
    assert guests.thawed == [one.id]
    assert names_of(place) == {"web": INSTANCE, "blue": one.id, two.id: two.id}
    assert noted(place) == set()


def test_a_claim_that_is_cut_short_has_used_up_its_generation(place: Place, vmms: Vmms, guests: Guests) -> None:
    """Its guest may have taken that identity, and an identity that it is given again runs no hook."""
    one = park(place, 5, vmms())
    guests.on_identity[one.id] = failing(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        take(place, "a")
    assert state_of(place, one) is State.PARKED
    del guests.on_identity[one.id]
    tidy.tidy(place.store)
    assert take(place, "a") == (one.id,)
    first, second = guests.generations
    assert one.generation < first < second == place.store.read(one.id).generation


def test_what_another_claim_has_noted_meanwhile_is_not_taken(place: Place, vmms: Vmms, guests: Guests) -> None:
    """Between the look at what is parked and the lock of one: the other gives it back, and is to remove it."""
    one, two, three = (park(place, number, vmms()) for number in (5, 6, 7))
    held = place.store.even_if_killed(Kind.REMOVE)
    chore = held.__enter__()
    guests.on_identity[one.id] = lambda: chore.add(Kind.REMOVE, two.id)
    assert take(place, "a", "b") == (one.id, three.id)
    held.__exit__(None, None, None)
    assert state_of(place, two) is State.PARKED


def test_what_a_claim_gives_back_is_not_its_own_to_remove(place: Place, vmms: Vmms, guests: Guests) -> None:
    """It may be somebody else's by the time that the claim fails as a whole."""
    one, two = park(place, 5, vmms()), park(place, 6, vmms())
    guests.on_identity[two.id] = failing(HostError("No room."))
    with pytest.raises(HostError, match="No room"):
        take(place, "a", "b")
    assert names_of(place) == {"web": INSTANCE, two.id: two.id}
    assert state_of(place, two) is State.PARKED
    assert not place.store.paths.instance(one.id).dir.exists()


@pytest.mark.parametrize("is_late", [False, True])
def test_a_claim_of_two_that_is_killed_leaves_no_name(place: Place, vmms: Vmms, guests: Guests, is_late: bool) -> None:
    """Whichever of its chores is done first: the removal knows of both names. ``is_late``: the record knows its new one."""
    park(place, 5, vmms())
    two = park(place, 6, vmms())
    at = guests.on_thaw if is_late else guests.on_identity
    at[two.id] = lambda: os.kill(os.getpid(), signal.SIGKILL)
    assert run_in_child(lambda: take(place, "a", "b")) == -signal.SIGKILL
    paths = sorted(place.store.paths.locks.glob("chore-*"))
    removal = next(path for path in paths if "remove" in path.name)
    removal.rename(removal.with_name(f"chore-000000000000-remove-{removal.name.rpartition('-')[2]}-{two.id}"))
    tidy.tidy(place.store)
    assert names_of(place) == {"web": INSTANCE}
    assert noted(place) == set()


def test_a_name_that_outlived_its_record_in_a_power_cut_is_freed(place: Place) -> None:
    """The name is durable at once, and that a claim is pending is not: by the next verb, by the removal, or by the check."""
    for number, name in ((5, "blue"), (6, "green"), (7, "red")):
        one = park(place, number, GONE)
        names.claim(place.store.paths.instance_names, name, one.id, what="instance")
    with observe.exclusive(place.store, "5" * 12):
        pass
    assert "blue" not in names_of(place)
    with place.store.even_if_killed(Kind.REMOVE, "6" * 12):
        pass
    (place.store.paths.locks / f"chore-000000000000-remove-{'6' * 12}").touch()
    tidy.tidy(place.store)
    assert "green" not in names_of(place)
    (found,) = [problem for problem in place.problems() if "red" in problem.where]
    assert found.text == f"It leads to {'7' * 12}, which is called {'7' * 12}."
    place.problems(repair=True)
    assert place.problems() == ()
    assert set(names_of(place)) == {"web", "5" * 12, "7" * 12}


def test_one_that_is_only_looked_at_is_waited_for_and_leaves_no_chore(
    place: Place, vmms: Vmms, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = park(place, 5, vmms()), park(place, 6, vmms())
    waited: list[float] = []
    exclusive = observe.exclusive

    def watched(store: object, name: str, *, timeout_s: float) -> object:
        waited.append(timeout_s)
        if timeout_s:
            looking.__exit__(None, None, None)
        return exclusive(place.store, name, timeout_s=timeout_s)

    looking = locked(place.store.paths.locks, f"instance-{one.id}", exclusive=False)
    with monkeypatch.context() as patched:
        patched.setattr(observe, "exclusive", watched)
        looking.__enter__()
        assert take(place, "a", "b") == (two.id, one.id)
    assert waited == [0, 0, claim.BUSY_TIMEOUT_S]
    assert noted(place) == set()


def test_one_that_stays_locked_is_left_and_leaves_no_chore(
    place: Place, vmms: Vmms, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = park(place, 5, vmms())
    monkeypatch.setattr(claim, "BUSY_TIMEOUT_S", 0.05)
    with (
        locked(place.store.paths.locks, f"instance-{one.id}"),
        pytest.raises(ConflictError, match="parked any more"),
    ):
        take(place, "a")
    assert noted(place) == set()
    assert take(place, "a") == (one.id,)


def test_the_source_stays_what_it_is_while_its_forks_are_claimed(place: Place, vmms: Vmms, guests: Guests) -> None:
    one = park(place, 5, vmms())

    def wake() -> None:
        with (
            pytest.raises(LockedError),
            locked(place.store.paths.locks, f"instance-{INSTANCE}", timeout_s=0),
        ):
            raise AssertionError("the source is locked by nobody")
        woken.append("tried")

    woken: list[str] = []
    guests.on_identity[one.id] = wake
    take(place, "a")
    assert woken == ["tried"]


def test_a_snapshot_stays_while_forks_of_it_are_claimed(place: Place, vmms: Vmms, guests: Guests) -> None:
    one = park(place, 5, vmms(), pool=place.snapshot_id)
    kept: list[str] = []

    def look() -> None:
        with pytest.raises(LockedError), place.store.deleting(place.snapshot_id, timeout_s=0):
            raise AssertionError("the snapshot is read by nobody")
        kept.append("kept")

    guests.on_identity[one.id] = look
    source = f"snapshot:{place.snapshot_id}"
    assert claim.claim(place.store, source, ["a"], count=None, on_result=lambda *_: None)[0] == (one.id,)
    assert kept == ["kept"]


def test_a_common_fault_ends_two_and_not_the_pool(place: Place, vmms: Vmms, guests: Guests) -> None:
    forks = [park(place, number, vmms()) for number in range(5, 9)]
    for one in forks:
        guests.on_identity[one.id] = failing(GuestError(f"{one.id} has no randomness."))
    with pytest.raises(ConflictError, match=r"2 parked forks of 'web' in a row .* no randomness.* 2 more") as caught:
        take(place, "a")
    assert isinstance(caught.value.__cause__, GuestError)
    assert [state_of(place, one) for one in forks] == [State.FAILED] * 2 + [State.PARKED] * 2
    assert noted(place) == set()
    ended = place.store.read(forks[0].id)
    assert ended.failure is Failure.VMM_LOST
    assert ended.failure_detail is not None
    assert "ended when it was claimed" in ended.failure_detail
    assert "has no randomness" in ended.failure_detail
    assert set(names_of(place)) == {"web", *(one.id for one in forks)}


def test_one_that_comes_up_between_begins_the_count_anew(place: Place, vmms: Vmms, guests: Guests) -> None:
    forks = [park(place, number, vmms()) for number in range(5, 9)]
    for one in (forks[0], forks[2]):
        guests.on_identity[one.id] = failing(GuestError("It does not want to."))
    assert take(place, "a", "b") == (forks[1].id, forks[3].id)


def test_the_last_error_is_the_cause_where_none_is_left(place: Place, vmms: Vmms, guests: Guests) -> None:
    one = park(place, 5, vmms())
    guests.on_identity[one.id] = failing(GuestError("It does not want to."))
    with pytest.raises(ConflictError, match="parked any more") as caught:
        take(place, "a")
    assert isinstance(caught.value.__cause__, GuestError)


def test_one_whose_monitor_is_out_of_reach_stays_parked(place: Place, vmms: Vmms, guests: Guests) -> None:
    one, two = park(place, 5, vmms()), park(place, 6, vmms())
    guests.on_connect[one.id] = failing(VmmError("No descriptor is left."))
    assert take(place, "a") == (two.id,)
    assert place.store.read(one.id) == one
    assert names_of(place) == {"web": INSTANCE, "a": two.id, one.id: one.id}
    del guests.on_connect[one.id]
    assert take(place, "b") == (one.id,)


def test_a_thaw_that_fails_is_made_up_for_by_the_next_verb(
    place: Place, vmms: Vmms, guests: Guests, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its record says that it runs, and it is claimed."""
    one = park(place, 5, vmms())
    guests.on_thaw[one.id] = failing(GuestError("It is slow."))
    assert take(place, "a") == (one.id,)
    assert "a is claimed, and its workload not thawed yet" in caplog.text
    record = place.store.read(one.id)
    assert (record.name, record.state, record.pending) == ("a", State.RUNNING, observe.CLAIM)
    thawed: list[str] = []
    monkeypatch.setattr("ramet.instances.guest.thaw", lambda run_dir: thawed.append(run_dir.parent.name))
    with observe.exclusive(place.store, "a") as instance:
        assert instance.record.pending is None
    assert thawed == [one.id]
    assert names_of(place) == {"web": INSTANCE, "a": one.id}


def test_a_thaw_whose_session_is_lost_is_said_again(
    place: Place, vmms: Vmms, guests: Guests, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = park(place, 5, vmms())
    guests.on_thaw[one.id] = failing(SessionLostError("Its vsock was reset."))
    thawed: list[str] = []
    monkeypatch.setattr("ramet.instances.guest.thaw", lambda run_dir, **_: thawed.append(run_dir.parent.name))
    assert take(place, "a") == (one.id,)
    assert thawed == [one.id]
    assert place.store.read(one.id).pending is None
    assert caplog.text == ""


def test_one_whose_vmm_ends_at_the_thaw_was_lost_in_the_pool(place: Place, vmms: Vmms, guests: Guests) -> None:
    vmm = vmms()
    one, two = park(place, 5, vmm), park(place, 6, vmms())

    def end() -> None:
        process.kill_and_wait(vmm)
        raise VmmDiedError("It has ended.")

    guests.on_thaw[one.id] = end
    assert take(place, "a") == (two.id,)
    record = place.store.read(one.id)
    assert (record.name, record.state, record.pool, record.pending) == (one.id, State.FAILED, INSTANCE, None)
    assert record.failure_detail == observe.PARKED_LOST


def test_the_removal_of_a_claimed_one_frees_the_id_that_it_was_called_before(
    place: Place, vmms: Vmms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claim could not, and has said so; the check of the store says so too."""
    one = park(place, 5, vmms())
    with monkeypatch.context() as patched:
        patched.setattr(names, "release", failing(HostError("The disk says no.")))
        assert take(place, "a") == (one.id,)
    assert names_of(place) == {"web": INSTANCE, "a": one.id, one.id: one.id}
    (problem,) = [found for found in place.problems() if one.id in found.where and "called a" in found.text]
    assert problem.can_be_mended
    Host(place.store.paths.home).remove("a", force=True)
    assert names_of(place) == {"web": INSTANCE}


def test_a_lost_one_is_not_restored_by_mistake_and_not_said_to_have_lost_anything(place: Place) -> None:
    one = park(place, 5, GONE)
    with pytest.raises(StateError, match="nothing is lost") as caught:
        Host(place.store.paths.home).restore(one.id)
    assert caught.value.hint == f"Remove it (ramet rm {one.id}), or have it replaced: ramet pool web --size N."
    two = park(place, 6, GONE, pool=place.snapshot_id)
    with pytest.raises(StateError) as caught:
        Host(place.store.paths.home).restore(two.id)
    assert caught.value.hint is not None
    assert f"ramet pool snapshot:{place.snapshot_id} --size" in caught.value.hint


def test_a_lost_one_that_somebody_boots_is_no_pools_to_replace(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if it does not come up: its guest may have written to its disk."""
    one = park(place, 5, GONE)
    place.store.paths.instance(one.id).disk.write_bytes(b"disk")
    monkeypatch.setattr(power, "boot", failing(VmmError("It does not come up.")))
    with pytest.raises(VmmError, match="come up"):
        power.start(place.store, one.id)
    assert place.store.read(one.id).pool is None
    assert pools.show(place.store, "web").lost == ()


def test_a_chore_that_moves_to_another_file_while_it_is_looked_for_is_found(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a killed command has left is noted anew by the command that has done a part of it."""
    locks = place.store.paths.locks
    (locks / f"chore-000000000000-remove-{INSTANCE}").touch()
    listings = iter(
        [[], *[list(locks.iterdir())] * 2]
    )  # in the first, the new name is not there yet, and the old no more
    monkeypatch.setattr(Path, "iterdir", lambda _: next(listings))
    assert chores.noted_ids(locks) == {INSTANCE}


def test_chores_that_cannot_be_listed_let_nothing_be_claimed(
    place: Place, vmms: Vmms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it names is not known."""
    park(place, 5, vmms())
    monkeypatch.setattr(chores, "_names", failing(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(HostError, match="at work on"):
        take(place, "a")
