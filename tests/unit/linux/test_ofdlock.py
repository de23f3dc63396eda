"""OFD locks: they belong to the open file, not to the process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ramet.linux import ofdlock
from tests.unit.children import holding


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., int]]:
    """Opens one file again and again; closes what is still open."""
    fds: list[int] = []

    def open_it(flags: int = os.O_RDWR) -> int:
        fds.append(os.open(tmp_path / "lock", flags | os.O_CREAT | os.O_CLOEXEC, 0o600))
        return fds[-1]

    yield open_it
    for fd in fds:
        try:
            os.close(fd)
        except OSError:
            continue  # closed by the test


def test_two_descriptors_of_one_process_exclude_each_other(opened: Callable[..., int]) -> None:
    """A POSIX lock would not: two threads of one Host would both hold it."""
    first, second = opened(), opened()
    assert ofdlock.try_lock(first)
    assert not ofdlock.try_lock(second)
    assert not ofdlock.try_lock(second, exclusive=False)
    os.close(first)
    assert ofdlock.try_lock(second)


def test_shared_locks_share(opened: Callable[..., int]) -> None:
    first, second, third = opened(os.O_RDONLY), opened(os.O_RDONLY), opened()
    assert ofdlock.try_lock(first, exclusive=False)
    assert ofdlock.try_lock(second, exclusive=False)
    assert not ofdlock.try_lock(third)
    os.close(first)
    assert not ofdlock.try_lock(third)
    os.close(second)
    assert ofdlock.try_lock(third)


def test_closing_another_descriptor_of_the_file_keeps_the_lock(opened: Callable[..., int]) -> None:
    """With POSIX locks it would be gone: any library that opens and closes the file would drop it."""
    first, second = opened(), opened()
    assert ofdlock.try_lock(first)
    os.close(opened())
    assert not ofdlock.try_lock(second)


def test_a_lock_goes_with_its_last_copy(opened: Callable[..., int]) -> None:
    first, second = opened(), opened()
    copy = os.dup(first)
    assert ofdlock.try_lock(first)
    os.close(first)
    assert not ofdlock.try_lock(second)
    os.close(copy)
    assert ofdlock.try_lock(second)


def test_a_killed_holder_lets_go(opened: Callable[..., int]) -> None:
    mine = opened()

    def hold(ready: Callable[[], None]) -> None:
        assert ofdlock.try_lock(opened())
        ready()

    with holding(hold):
        assert not ofdlock.try_lock(mine)
    assert ofdlock.try_lock(mine)


def test_an_exclusive_lock_needs_a_descriptor_that_may_write(opened: Callable[..., int]) -> None:
    """So a published file, which is 0400, cannot carry one: locks are files of their own."""
    with pytest.raises(OSError, match="Bad file descriptor"):
        ofdlock.try_lock(opened(os.O_RDONLY))
