"""Threads are waited for as they end, and a signal ends the wait, not them."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

import pytest

from ramet.snapshots import sums
from ramet.threads import as_they_end

EVERYWHERE = Path(__file__).with_name("interrupted_everywhere.py")
ENDS_WITHIN_S = 30.0
HANGS_WITHIN_S = 6.0
BUSY_S = 1.0


class EndedError(BaseException):
    """What a handler raises: of a KeyboardInterrupt pytest would end itself."""


def test_the_first_that_ends_comes_first() -> None:
    go_on = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        slow, quick = pool.submit(go_on.wait), pool.submit(bool)
        ended = as_they_end([slow, quick])
        assert next(ended) is quick
        go_on.set()
        assert list(ended) == [slow]


def test_what_failed_is_among_them() -> None:
    with ThreadPoolExecutor(1) as pool:
        (failed,) = as_they_end([pool.submit(lambda: 1 // 0)])
    assert isinstance(failed.exception(), ZeroDivisionError)


def test_nothing_is_waited_for_where_there_is_nothing() -> None:
    assert list(as_they_end([])) == []


def test_a_signal_before_any_line_of_it_leaves_no_thread_that_waits_for_a_lock() -> None:
    done = subprocess.run(
        [sys.executable, EVERYWHERE, "as_they_end"], capture_output=True, text=True, timeout=ENDS_WITHIN_S, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 10


def test_the_standard_library_has_such_a_place() -> None:
    """Why there is a function of our own: once this fails, it can go."""
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, EVERYWHERE, "as_completed"], timeout=HANGS_WITHIN_S, check=False)


def test_a_signal_that_ends_a_join_leaves_no_thread_at_work() -> None:
    """Python 3.11 takes a thread that was being joined then for ended, and what it reads or writes may be closed."""
    at_work = 0

    def work(item: int) -> None:
        nonlocal at_work
        if item == 0:
            raise ValueError("the first")
        at_work += 1
        time.sleep(BUSY_S)
        at_work -= 1

    before = signal.signal(signal.SIGINT, interrupt)
    timer = threading.Timer(BUSY_S / 4, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises((ValueError, EndedError)):
            sums._in_threads(work, [1, 0], None)
        assert at_work == 0
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)


def interrupt(_number: int, _frame: FrameType | None) -> None:
    raise EndedError
