"""A test suite that was started by nohup(1), or by ``&`` in a script."""

from __future__ import annotations

import os
import signal
import subprocess

from ramet.signals import ENDING_SIGNALS
from tests.heeding import heeded


def ignored_by_a_child() -> set[signal.Signals]:
    status = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True, check=True).stdout
    mask = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigIgn:"))
    return {number for number in ENDING_SIGNALS if mask >> (number - 1) & 1}


def test_what_tests_start_does_not_ignore_what_they_were_started_to_ignore() -> None:
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ENDING_SIGNALS}
    try:
        assert ignored_by_a_child() == set(ENDING_SIGNALS)
        with heeded():
            assert ignored_by_a_child() == set()
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
        assert ignored_by_a_child() == set(ENDING_SIGNALS)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
