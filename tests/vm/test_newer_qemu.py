"""A QEMU that opens memory files read-only (8.2 and newer): its VMM maps the snapshot itself, and the kernel guards it.

The host's QEMU if it is new enough, else the one that the lab uses.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from lab import emulator
from ramet import Host
from ramet.hypervisors.qemu import apic_timer, driver
from ramet.hypervisors.qemu.apic_timer import Measured
from ramet.hypervisors.users import USERS
from ramet.model import InstanceInfo, MemoryPolicy
from ramet.verify import run
from ramet.verify.checks import Strength, Verdict
from ramet.verify.fingerprints import fingerprint
from ramet.verify.reports.text import render
from ramet.verify.runner import MEMORY_MIN_MIB
from tests.capabilities import requires
from tests.conftest import STATE_DIR
from tests.file_systems import on_ext4

pytestmark = requires("qemu", "root")


@pytest.fixture(autouse=True)
def newer_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """$RAMET_QEMU is a script, since the lab's QEMU must be told where its firmware is."""
    script = tmp_path / "qemu"
    script.write_text(f'#!/bin/sh\nexec {shlex.join(emulator.command(STATE_DIR))} "$@"\n')
    script.chmod(0o700)
    monkeypatch.setenv("RAMET_QEMU", str(script))
    monkeypatch.setenv("RAMET_VMM_READS", str(STATE_DIR))


@pytest.fixture
def standby(host: Host, booted: InstanceInfo) -> InstanceInfo:
    """The one that is kept for all tests was saved by another QEMU."""
    return host.standby(booted.name)


def test_a_vmm_maps_its_own_snapshot_and_cannot_write_it(host: Host, standby: InstanceInfo) -> None:
    """H06, H68: no descriptor that can write, no clone, on any file system; and the guest has writable RAM all the same."""
    assert standby.snapshot is not None
    memory = Path(standby.snapshot.memory)
    before = memory.read_bytes()
    host.fork("web", "twin")
    for name in ("web", "twin"):
        restored = host.restore(name)
        assert restored.mapped_memory is not None
        assert restored.snapshot is not None
        assert restored.mapped_memory.path == restored.snapshot.memory
        assert not restored.mapped_memory.writable
        assert host.exec(name, ["sh", "-c", f"cat /ram/mark; echo {name} >/ram/mark"]).stdout == b"ram-source\n"
    host.standby("twin")
    assert memory.read_bytes() == before
    assert host.restore("twin").pid is not None
    assert host.exec("twin", ["cat", "/ram/mark"]).stdout == b"twin\n"
    assert host.exec("web", ["cat", "/ram/mark"]).stdout == b"web\n"


def test_forks_that_share_map_the_published_file_which_is_no_vmms_own(host: Host, standby: InstanceInfo) -> None:
    """All start at once, and the source too: none of them owns it for a moment, and none can open it for writing."""
    assert standby.snapshot is not None
    memory = Path(standby.snapshot.memory)
    before = fingerprint(memory).sha256
    forks = host.fork("web", ["a", "b", "c"], start=True, memory_policy=MemoryPolicy.SHARE).instances
    source = host.restore("web")
    status = memory.stat()
    assert (status.st_uid, status.st_mode & 0o777) == (0, 0o440 if status.st_gid in USERS else 0o400)
    for one in (*forks, source):
        assert one.mapped_memory is not None
        assert one.mapped_memory.path == str(memory)
        assert not one.mapped_memory.writable
        assert host.exec(one.name, ["sh", "-c", f"cat /ram/mark; echo {one.name} >/ram/mark"]).stdout == b"ram-source\n"
    host.standby("a")
    host.remove("web", force=True)
    assert fingerprint(memory).sha256 == before
    host.restore("a")
    for one in forks:
        assert host.exec(one.name, ["cat", "/ram/mark"]).stdout == f"{one.name}\n".encode()
    assert host.check_store().whole


@on_ext4
def test_verify_says_that_the_kernel_enforces_it(host: Host) -> None:
    """Without reflinks an older QEMU writes to the file that it maps, and is told of as held, not enforced."""
    report = run(host.home, memory_mib=MEMORY_MIN_MIB, scenarios=["base"])
    assert report.verdict is Verdict.PASS, render(report)
    results = {result.claim.id: result for result in report.results}
    assert results["vmm-maps-privately"].strength is Strength.ENFORCED


@on_ext4
def test_so_it_is_where_forks_share_the_published_file(host: Host) -> None:
    report = run(host.home, memory_mib=MEMORY_MIN_MIB, memory_policy=MemoryPolicy.SHARE, scenarios=["base"])
    assert report.verdict is Verdict.PASS, render(report)
    results = {result.claim.id: result for result in report.results}
    assert results["vmm-maps-privately"].strength is Strength.ENFORCED
    broken = run(
        host.home,
        memory_mib=MEMORY_MIN_MIB,
        memory_policy=MemoryPolicy.SHARE,
        sabotage="writable-shared-memory",
        stop_when_caught=True,
    )
    assert {"vmm-maps-privately", "vmm-cannot-write-others"} <= set(broken.failed()), render(broken)


@on_ext4
def test_a_shared_mapping_is_caught_there_too(host: Host) -> None:
    """The sabotage must undo the kernel's protection first."""
    report = run(host.home, memory_mib=MEMORY_MIN_MIB, sabotage="shared-mapping", stop_when_caught=True)
    assert "vmm-maps-privately" in report.failed(), render(report)


CREATES_MAX = 4


def test_what_it_prints_of_a_guests_timer_is_understood(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a guest that has measured it wrong would not boot again. A busy host may miss the moment, or make it measure wrong."""
    seen: list[Measured] = []

    def told(look: Callable[[], str], tick_hz: int, deadline_s: float) -> Measured:
        seen.append(apic_timer.measured(look, tick_hz, deadline_s))
        return seen[-1]

    monkeypatch.setattr(driver, "measured", told)
    for _ in range(CREATES_MAX):
        host.create("web", memory_mib=128)
        if Measured.WELL in seen:
            break
        host.remove("web", force=True)
    assert Measured.WELL in seen, seen
