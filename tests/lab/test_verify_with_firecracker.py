"""`ramet verify --hypervisor firecracker`: it passes whole, and what strikes at the VMM itself is caught there too."""

from __future__ import annotations

import pytest

from ramet import Host
from ramet.errors import ConfigError
from ramet.linux.mounts import file_system_of
from ramet.model import Hypervisor
from ramet.verify import run
from ramet.verify.checks import Strength, Verdict
from ramet.verify.report import render
from ramet.verify.sabotage import SABOTAGES
from tests.conftest import requires
from tests.lab.file_systems import FILE_SYSTEMS, WHOLE

pytestmark = [
    requires("firecracker", "kvm"),
    pytest.mark.parametrize("file_system", FILE_SYSTEMS, indirect=True),
    pytest.mark.timeout(1200),
]
STRIKES_THE_VMM = "shared-disk"
SAMPLED = list(SABOTAGES) if WHOLE else [STRIKES_THE_VMM]
MEMORY_MIB = 256


def test_everything_passes(host: Host) -> None:
    report = run(host.home, hypervisor="firecracker", memory_mib=MEMORY_MIB)
    assert report.verdict is Verdict.PASS, render(report)
    assert "firecracker" in report.host["vmm"]
    results = {result.claim.id: result for result in report.results}
    assert results["vmm-maps-privately"].strength is Strength.ENFORCED
    if file_system_of(host.home) == "xfs":
        assert results["fork-disk-usage"].verdict is Verdict.PASS
    assert host.list() == []


@pytest.mark.parametrize("name", SAMPLED)
def test_a_sabotage_is_caught(name: str, host: Host) -> None:
    on_ext4 = file_system_of(host.home) != "xfs"
    if SABOTAGES[name].why_not(Hypervisor.FIRECRACKER, no_reflinks="ext4" if on_ext4 else None):
        with pytest.raises(ConfigError, match="cannot be committed here"):
            run(host.home, hypervisor="firecracker", sabotage=name)
        return
    report = run(host.home, hypervisor="firecracker", sabotage=name)
    assert set(SABOTAGES[name].caught_by) <= set(report.failed()), render(report)
    assert host.list() == []
