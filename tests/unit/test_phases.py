"""How long phases take is added up by name, for whoever measures, and for nobody else."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from ramet import phases
from ramet.phases import measured, phase


def test_phases_of_all_threads_are_added_up_by_name() -> None:
    def work() -> None:
        with phase("wait"):
            time.sleep(0.02)

    with measured() as taken:
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with phase("other"):
            pass
    assert set(taken) == {"wait", "other"}
    assert taken["wait"] >= 0.04 > taken["other"]


def test_a_phase_that_fails_took_its_time_too() -> None:
    with measured() as taken, pytest.raises(ValueError, match="broken"), phase("broken"):
        raise ValueError("broken")
    assert set(taken) == {"broken"}


def test_nobody_is_told_afterwards(caplog: pytest.LogCaptureFixture) -> None:
    with measured() as taken:
        pass
    with phase("unheard"):
        pass
    assert taken == {}
    assert not phases.log.isEnabledFor(logging.DEBUG)
    assert caplog.records == []
    with measured() as others, phase("later"):
        pass
    assert taken == {}
    assert set(others) == {"later"}
