"""SIGKILL between steps of the verbs that capture with Firecracker, whose dirty pages are lost with a capture that is: the next
one lacks nothing (H12, H66). A few of each, since a guest in the lab is slow; all, with QEMU, are in ``tests/vm/test_killed.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from ramet import Host
from ramet.model import MIB, Hypervisor
from tests.artifacts import TOLD
from tests.capabilities import requires
from tests.file_systems import WHOLE
from tests.vm.command_line import CommandLine
from tests.vm.cut_short import MARKS, RAMET, VMMS, kill_before, sleep_and_wake
from tests.vm.guests import sh

VERBS = ("standby", "fork one", "snapshot create", "restore")
SAMPLE = 8
pytestmark = [
    pytest.mark.skipif(not WHOLE, reason="in make test-all: a step takes the lab ten seconds"),
    requires("firecracker", "kvm"),
    pytest.mark.parametrize("file_system", ["xfs"], indirect=True),
]


def spread(count: int) -> Sequence[int]:
    apart = count // SAMPLE
    return range(apart * 3 // 4, count, apart)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("whom", [RAMET, VMMS])
@pytest.mark.parametrize("name", VERBS)
def test_a_verb_that_is_killed(
    host: Host, name: str, whom: str, record_property: Callable[[str, object], None]
) -> None:
    host.create("web", memory_mib=128, disk_bytes=64 * MIB, hypervisor=Hypervisor.FIRECRACKER)
    sh(host, "web", MARKS)
    told = kill_before(host, CommandLine(host.home), name, whom, spread, then=sleep_and_wake)
    record_property(TOLD, f"Firecracker, {told}")
