"""SIGKILL between steps of the verbs that capture with Firecracker, whose dirty pages are lost with a capture that is: the
next one lacks nothing (H12, H66). A few of each, since a guest in the lab is slow; all, with QEMU, are in
``tests/vm/test_cut_short.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ramet import Host
from tests.artifacts import TOLD
from tests.capabilities import requires
from tests.file_systems import WHOLE
from tests.kept import Kept
from tests.vm.command_line import CommandLine
from tests.vm.cut_short import kill_before, sleep_and_wake, steps_of
from tests.vm.verbs import RAMET, VERBS, VMMS, spread

KILLED = ("standby", "fork one", "snapshot create", "restore")
SAMPLE = 8
pytestmark = [
    pytest.mark.skipif(not WHOLE, reason="in make test-all: a step takes the lab ten seconds"),
    requires("firecracker", "kvm"),
    pytest.mark.parametrize("file_system", ["xfs"], indirect=True),
]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("whom", [RAMET, VMMS])
@pytest.mark.parametrize("name", KILLED)
def test_a_verb_that_is_killed(
    host: Host, kept: Kept, name: str, whom: str, record_property: Callable[[str, object], None]
) -> None:
    command = CommandLine(host.home)
    steps = steps_of(host, command, kept, VERBS[name])
    told = kill_before(host, command, kept, name, whom, steps, spread(len(steps), SAMPLE), then=sleep_and_wake)
    record_property(TOLD, f"Firecracker, {told}")
