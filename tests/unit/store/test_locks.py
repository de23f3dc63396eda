"""Locks: between processes and threads, gone with their holder, right although their files come and go."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from ramet.errors import HostError, LockedError
from ramet.linux import ofdlock
from ramet.process import wait_until
from ramet.store.locks import locked
from tests.unit.children import exit_codes, fork, holding, own_descriptors, run_in_child

KEY = "instance-0123456789ab"


def holder(directory: Path, *, exclusive: bool) -> Callable[[Callable[[], None]], None]:
    def hold(ready: Callable[[], None]) -> None:
        with locked(directory, KEY, exclusive=exclusive):
            ready()

    return hold


def can_lock(directory: Path, *, exclusive: bool) -> bool:
    try:
        with locked(directory, KEY, exclusive=exclusive, timeout_s=0):
            return True
    except LockedError:
        return False


@pytest.mark.parametrize(
    ("theirs", "mine", "possible"),
    [(True, True, False), (True, False, False), (False, True, False), (False, False, True)],
    ids=["exclusive-exclusive", "exclusive-shared", "shared-exclusive", "shared-shared"],
)
def test_between_two_processes(tmp_path: Path, theirs: bool, mine: bool, possible: bool) -> None:
    with holding(holder(tmp_path, exclusive=theirs)):
        assert can_lock(tmp_path, exclusive=mine) is possible
    assert can_lock(tmp_path, exclusive=mine), "a killed holder lets go"


def test_between_two_threads_of_one_process(tmp_path: Path) -> None:
    results = []
    with locked(tmp_path, KEY):
        thread = threading.Thread(target=lambda: results.append(can_lock(tmp_path, exclusive=True)))
        thread.start()
        thread.join()
    assert results == [False]


def test_another_key_is_another_lock(tmp_path: Path) -> None:
    with locked(tmp_path, KEY), locked(tmp_path, "snapshot-0123456789ab", timeout_s=0):
        assert {entry.name for entry in tmp_path.iterdir()} == {KEY, "snapshot-0123456789ab"}


def test_the_refusal_names_the_lock_and_comes_at_once_or_in_time(tmp_path: Path) -> None:
    with locked(tmp_path, KEY):
        for timeout_s in (0, 0.05):
            began = time.monotonic()
            with (
                pytest.raises(LockedError, match=f"{KEY} .*{tmp_path / KEY}"),
                locked(tmp_path, KEY, timeout_s=timeout_s),
            ):
                pytest.fail("it was locked twice")
            assert timeout_s <= time.monotonic() - began < timeout_s + 5


def test_a_waiter_gets_it_when_the_holder_lets_go(tmp_path: Path) -> None:
    got = threading.Event()

    def wait() -> None:
        with locked(tmp_path, KEY, timeout_s=20):
            got.set()

    with locked(tmp_path, KEY):
        thread = threading.Thread(target=wait)
        thread.start()
        assert not got.wait(0.05)
    thread.join(20)
    assert got.is_set()


def test_an_exclusive_holder_removes_the_file_and_a_shared_one_leaves_it(tmp_path: Path) -> None:
    """A shared holder cannot know whether another shared one still has it."""
    with locked(tmp_path, KEY, exclusive=False):
        pass
    assert (tmp_path / KEY).exists()
    with locked(tmp_path, KEY):
        assert (tmp_path / KEY).exists()
    assert list(tmp_path.iterdir()) == []


def test_the_block_s_error_passes_and_frees_the_lock(tmp_path: Path) -> None:
    before = own_descriptors()
    with pytest.raises(ZeroDivisionError), locked(tmp_path, KEY):
        raise ZeroDivisionError
    assert can_lock(tmp_path, exclusive=True)
    assert own_descriptors() == before


def test_the_lock_file_is_private_and_not_inherited(tmp_path: Path) -> None:
    before = own_descriptors()
    with locked(tmp_path, KEY):
        assert (tmp_path / KEY).stat().st_mode & 0o077 == 0
        [fd] = own_descriptors() - before
        assert not os.get_inheritable(int(fd))


def test_no_directory_for_locks_is_a_host_error(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="No such file"), locked(tmp_path / "missing", KEY):
        pytest.fail("locked nothing")


# -- a lock file that is removed between open and lock -----------------------------------------------------------


@pytest.mark.parametrize("replaced", [False, True], ids=["removed", "replaced"])
@pytest.mark.parametrize("timeout_s", [0, 5])
def test_a_lock_on_a_file_that_has_lost_its_name_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaced: bool, timeout_s: float
) -> None:
    """Forced: the holder of before removes the file after we have opened it and before we lock it.

    Who counts that as held shares the lock with whoever makes the file anew. And who has not to wait must not be refused.
    """
    real = ofdlock.try_lock
    removals: list[int] = []

    def try_lock(fd: int, *, exclusive: bool = True) -> bool:
        if not removals:
            removals.append(fd)
            (tmp_path / KEY).unlink()
            if replaced:
                (tmp_path / KEY).touch()
        return real(fd, exclusive=exclusive)

    monkeypatch.setattr(ofdlock, "try_lock", try_lock)
    with locked(tmp_path, KEY, timeout_s=timeout_s):
        assert removals
        assert run_in_child(lambda: _assert_locked(tmp_path)) == 0


def _assert_locked(directory: Path) -> None:
    assert not can_lock(directory, exclusive=True)


@pytest.mark.timeout(120)
def test_mutual_exclusion_under_a_hammer(tmp_path: Path) -> None:
    """Writers and readers of several processes on one key whose file comes and goes: a writer is always alone.

    Whoever is inside leaves a file of its own in ``inside/``; who finds one that must not be there has failed.
    """
    locks, inside = tmp_path / "locks", tmp_path / "inside"
    locks.mkdir()
    inside.mkdir()
    start = tmp_path / "start"
    rounds = 300

    def hammer(number: int) -> None:
        wait_until(start.exists, 20, what="the start")
        for turn in range(rounds):
            exclusive = (turn + number) % 3 != 0
            with locked(locks, KEY, exclusive=exclusive, timeout_s=60):
                mine = inside / f"{'writer' if exclusive else 'reader'}-{number}"
                mine.touch()
                others = {entry.name for entry in inside.iterdir()} - {mine.name}
                assert not (others if exclusive else {name for name in others if name.startswith("writer")}), others
                mine.unlink()

    pids = [fork(partial(hammer, number)) for number in range(4)]
    start.touch()
    assert exit_codes(pids) == [0] * len(pids)
