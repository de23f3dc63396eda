"""The same work for many at once: in order, bounded, and ended together."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import pytest

from ramet.errors import HostError, RametError
from ramet.instances import fan_out
from ramet.signals import signals_held


def test_all_are_done_some_at_a_time_and_told_in_their_order() -> None:
    at_work, most, lock = 0, 0, threading.Lock()
    three = threading.Barrier(3, timeout=60)
    told: list[tuple[int, int | RametError]] = []

    def action(number: int) -> int:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        three.wait()
        time.sleep(0.01)  # a fourth would come by now
        with lock:
            at_work -= 1
        return number * number

    found = fan_out.each(range(9), action, at_once=3, done=lambda item, result: told.append((item, result)))
    assert found == [number * number for number in range(9)]
    assert sorted(told) == [(number, number * number) for number in range(9)]
    assert most == 3
    assert fan_out.each([], action, at_once=3) == []


def fails(number: int) -> int:
    if number == 2:
        raise HostError("The third.")
    return number


def test_one_that_fails_ends_it_and_what_was_not_begun_is_not() -> None:
    begun: list[int] = []
    hurried: list[bool] = []
    hurry = threading.Event()

    def action(number: int) -> int:
        begun.append(number)
        if number > 2:
            hurry.wait(60)
        return fails(number)

    def go_on() -> None:
        hurried.append(True)
        hurry.set()

    with pytest.raises(HostError, match="The third"):
        fan_out.each(range(50), action, at_once=1, hurry=go_on)
    assert len(begun) <= 4
    assert hurried == [True]


def test_or_it_is_told_and_the_others_go_on() -> None:
    found = fan_out.each(range(5), fails, at_once=2, keep_going=True)
    assert [one for one in found if not isinstance(one, RametError)] == [0, 1, 3, 4]
    assert isinstance(found[2], HostError)


def test_what_is_no_error_of_ours_ends_it_whatever_was_wished() -> None:
    with pytest.raises(ZeroDivisionError):
        fan_out.each(range(3), lambda number: 1 // number, at_once=1, keep_going=True)


def test_a_signal_ends_it_when_no_thread_is_at_work_any_more() -> None:
    ended, go = [], threading.Event()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # nohup(1) and the shell's & have it ignored

    def action(number: int) -> int:
        if number == 0:
            os.kill(os.getpid(), signal.SIGINT)
        go.wait(10)
        ended.append(number)
        return number

    try:
        with pytest.raises(KeyboardInterrupt):
            fan_out.each(range(20), action, at_once=2, hurry=go.set)
    finally:
        signal.signal(signal.SIGINT, before)
    assert threading.active_count() == 1 or not any(
        thread.name.startswith("fan-out") for thread in threading.enumerate()
    )
    assert len(ended) <= 4


def test_a_signal_on_the_way_to_the_end_keeps_what_was_not_begun_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """After one has failed, and before the others are cancelled."""
    begun: list[int] = []
    entered: list[None] = []
    real = signals_held
    over = threading.Event()

    class Pool(ThreadPoolExecutor):
        """Whoever ends it has cancelled by then what is not to begin."""

        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            over.set()
            super().shutdown(wait)

    def interrupted() -> AbstractContextManager[None]:
        entered.append(None)
        if len(entered) == 2:
            raise KeyboardInterrupt
        return real()

    def action(number: int) -> int:
        begun.append(number)
        if number > 2:
            over.wait(60)
        return fails(number)

    monkeypatch.setattr(fan_out, "signals_held", interrupted)
    monkeypatch.setattr(fan_out, "ThreadPoolExecutor", Pool)
    with pytest.raises(KeyboardInterrupt):
        fan_out.each(range(100), action, at_once=1)
    assert len(begun) <= 4
    assert not any(thread.name.startswith("fan-out") for thread in threading.enumerate())
