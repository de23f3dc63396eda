"""A host that does not run a guest while it measures its timer: the guest boots again, instead of hanging or oversleeping."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

from ramet import Host
from ramet.errors import LaunchError
from ramet.hypervisors.qemu import apic_timer, driver
from ramet.hypervisors.qemu.apic_timer import Measured
from tests import artifacts
from tests.file_systems import on_ext4
from tests.vm.guests import sh

MEASURING = "initial_count = 268435455"
STOPPED_S = 0.15
CREATES_MAX = 30
BAD = {Measured.TOO_LOW, Measured.TOO_HIGH}
pytestmark = on_ext4


@pytest.mark.timeout(1800)
def test_a_guest_that_was_stopped_as_it_measured_its_timer_boots_again(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two CPUs: without their timer the second never comes up. The stop has to fall into the first 4 ms, and does not always."""
    seen: list[Measured] = []

    def on_a_busy_host(look: Callable[[], str], tick_hz: int, deadline_s: float) -> Measured:
        stopped = bool(BAD & set(seen))
        pids = set() if stopped else artifacts.vmm_pids(f"{host.home}/")  # not as it measures: that is over too soon

        def looked() -> str:
            nonlocal stopped
            text = look()
            if MEASURING in text and not stopped:
                stopped = True
                (pid,) = pids
                os.kill(pid, signal.SIGSTOP)
                time.sleep(STOPPED_S)
                os.kill(pid, signal.SIGCONT)
            return text

        seen.append(apic_timer.measured(looked, tick_hz, deadline_s))
        return seen[-1]

    monkeypatch.setattr(driver, "measured", on_a_busy_host)
    monkeypatch.setattr(apic_timer, "EVERY_S", 0.0005)
    for _ in range(CREATES_MAX):
        host.create("web", memory_mib=128, disk_bytes=32 << 20, cpus=2)
        if BAD & set(seen):
            break
        host.remove("web", force=True)
    assert BAD & set(seen), "no stop fell into a measurement"
    assert seen[-1] not in BAD  # one that was not seen to measure it is judged by what it does
    assert sh(host, "web", "nproc") == "2"
    assert slept_s(host) < 1.6, "it sleeps as long as it says"
    assert len(artifacts.vmm_pids(f"{host.home}/")) == 1


def slept_s(host: Host) -> float:
    """How long a guest's sleep of a second takes, at best, without what any command takes, at best."""
    took_s: dict[int, list[float]] = {0: [], 1: []}
    for slept in (0, 1) * 4:
        started_s = time.monotonic()
        sh(host, "web", f"sleep {slept}")
        took_s[slept].append(time.monotonic() - started_s)
    return min(took_s[1]) - min(took_s[0])


def test_a_guest_that_never_measures_it_well_is_not_waited_for(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "measured", lambda *_: Measured.TOO_LOW)
    with pytest.raises(LaunchError, match="measured its timer wrong"):
        host.create("web", memory_mib=128, disk_bytes=32 << 20)
    assert artifacts.vmm_pids(f"{host.home}/") == set()
    assert host.list() == []


def test_one_that_oversleeps_runs_and_this_is_told(
    host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(driver, "measured", lambda *_: Measured.TOO_HIGH)
    host.create("web", memory_mib=128, disk_bytes=32 << 20)
    assert "sleeps take too long" in caplog.text
    assert sh(host, "web", "echo up") == "up"
