"""`ramet verify` on Firecracker and on QEMU with KVM: it passes whole, and sabotage is caught there too."""

from __future__ import annotations

import pytest

from ramet import Host
from ramet.errors import ConfigError
from ramet.hypervisors.qemu.driver import QemuDriver
from ramet.linux.mounts import file_system_of
from ramet.model import Hypervisor
from ramet.verify import run
from ramet.verify.checks import Strength, Verdict
from ramet.verify.needs import lacks
from ramet.verify.reports.text import render
from ramet.verify.runner import MEMORY_MIN_MIB
from ramet.verify.sabotage import SABOTAGES
from tests.capabilities import requires
from tests.file_systems import WHOLE, on_xfs

pytestmark = [
    requires("firecracker", "kvm"),
    on_xfs,
    pytest.mark.timeout(1200),
]
needs_whole = pytest.param("qemu", marks=pytest.mark.skipif(not WHOLE, reason="in make test-all"))
SAMPLED = list(SABOTAGES) if WHOLE else ["written-under-a-running-fork"]
SAMPLED_ON_EXT4 = ("hard-linked-memory", "in-place-diff", "shared-disk", "written-under-a-running-fork")
MEMORY_MIB = 256 if WHOLE else MEMORY_MIN_MIB
CHOSEN = () if WHOLE else ("base", "live")
"""The others are the founding scenario's companions in every run, and scenarios in `make test-all`."""


@pytest.mark.parametrize("hypervisor", ["firecracker", needs_whole])
def test_everything_passes(hypervisor: str, host: Host) -> None:
    report = run(host.home, hypervisor=hypervisor, memory_mib=MEMORY_MIB, scenarios=CHOSEN)
    assert report.verdict is Verdict.PASS, render(report)
    assert hypervisor in report.host["vmm"].lower()
    assert report.host["vmm"].endswith("kvm")
    results = {result.claim.id: result for result in report.results}
    reflinks = file_system_of(host.home) == "xfs"
    by_the_kernel = hypervisor == "firecracker" or QemuDriver().opens_memory_read_only
    # With reflinks an old QEMU has a clone of its own to write to.
    assert (results["vmm-maps-privately"].strength is Strength.ENFORCED) is (by_the_kernel or reflinks)
    if reflinks:
        assert results["fork-disk-usage"].verdict is Verdict.PASS
    assert host.list() == []


@pytest.mark.parametrize("name", SAMPLED)
def test_a_sabotage_is_caught(name: str, host: Host) -> None:
    on_ext4 = file_system_of(host.home) != "xfs"
    if on_ext4 and name not in SAMPLED_ON_EXT4:
        pytest.skip("on XFS alone")
    if SABOTAGES[name].why_not(Hypervisor.FIRECRACKER, lacks(host, Hypervisor.FIRECRACKER)):
        with pytest.raises(ConfigError, match="cannot be committed here"):
            run(host.home, hypervisor="firecracker", sabotage=name)
        return
    report = run(host.home, hypervisor="firecracker", memory_mib=MEMORY_MIN_MIB, sabotage=name, stop_when_caught=True)
    assert set(SABOTAGES[name].caught_by) <= set(report.failed()), render(report)
    assert host.list() == []
