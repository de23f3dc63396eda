"""Forks that wait, on Firecracker: parked with their workload frozen, claimed with an identity of their own."""

from __future__ import annotations

import pytest

from ramet import Host
from ramet.model import State
from tests.capabilities import requires
from tests.kept import Kept
from tests.vm.guests import marks, set_marks, sh

pytestmark = [
    requires("firecracker", "kvm"),
    pytest.mark.parametrize("file_system", ["xfs"], indirect=True),
]


def test_parked_forks_are_claimed_and_diverge(host: Host, kept: Kept) -> None:
    kept.put_into(host)
    host.restore("web")
    set_marks(host, "web", "ram", "disk")
    host.exec("web", ["sh", "-c", "while :; do printf x >>/ram/ticks; usleep 20000; done"], detach=True)
    sh(host, "web", "echo 'wc -c </ram/ticks >>/run/seen' | sed '1i #!/bin/sh' >/etc/ramet/resume.d/10-look")
    sh(host, "web", "chmod 755 /etc/ramet/resume.d/10-look; until [ -s /ram/ticks ]; do usleep 20000; done")
    host.standby("web")
    parked = host.pool("web", size=2).parked
    assert [host.get(one).state for one in parked] == [State.PARKED] * 2
    drawn = set()
    for name in ("a", "b"):
        (info,) = host.fork("web", name, from_pool=True).instances
        assert info.state is State.RUNNING
        assert sh(host, name, "hostname") == name
        at_park, at_claim = sh(host, name, "tail -n 2 /run/seen").split()
        assert at_park == at_claim, "its workload has stood still"
        assert marks(host, name) == ("ram", "disk")
        set_marks(host, name, f"ram-{name}", f"disk-{name}")
        drawn.add(sh(host, name, "cat /proc/sys/kernel/random/uuid"))
    assert len(drawn) == 2
    host.standby("a")
    host.restore("a")
    for name in ("a", "b"):
        assert marks(host, name) == (f"ram-{name}", f"disk-{name}")
    host.restore("web")
    assert marks(host, "web") == ("ram", "disk")
    assert host.check_store().whole
