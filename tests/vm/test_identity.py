"""Identity after a restore and a fork: fresh, acknowledged before the workload thaws, and fail-closed."""

from __future__ import annotations

import time

import pytest

from ramet import Host
from ramet.errors import GuestError
from ramet.model import InstanceInfo, State
from ramet.process import wait_until
from ramet.verify.fingerprints import fingerprints
from tests import artifacts
from tests.file_systems import on_ext4
from tests.vm.guests import marks, sh
from tests.vm.test_fork import snapshot_dir

pytestmark = on_ext4

DRAW = "cat /proc/sys/kernel/random/uuid; head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n'"


def test_every_fork_is_somebody_else(host: Host, standby: InstanceInfo) -> None:
    """H50, H51, H52."""
    names = ["web", *(info.name for info in host.fork("web", count=3).instances)]
    seen = []
    for name in names:
        host.restore(name)
        draw = sh(host, name, DRAW)
        asked = time.time()
        hostname, machine_id, now = sh(host, name, "hostname; cat /etc/machine-id; date +%s").split()
        assert asked - 3 < int(now) < time.time() + 3
        assert hostname == name
        assert sh(host, name, "cat /etc/hostname") == name
        seen.append((machine_id, *draw.split()))
    for values in zip(*seen, strict=True):
        assert len(set(values)) == len(names), values


def test_the_generation_changes_and_hooks_run_before_the_thaw(host: Host, running: InstanceInfo) -> None:
    sh(
        host,
        "web",
        "cat >/etc/ramet/resume.d/10-record <<'END'\n"
        "#!/bin/sh\n"
        "echo $(cat /sys/fs/cgroup/workload/cgroup.freeze) $(cat /run/ramet/generation) $(hostname) >>/run/hook\n"
        "END\n"
        "chmod 755 /etc/ramet/resume.d/10-record",
    )
    before = host.ping("web").generation
    host.standby("web")
    host.fork("web", ["other"], start=True)
    host.restore("web")
    for name in ("web", "other"):
        assert sh(host, name, "cat /run/hook") == f"1 {before + 1} {name}"
        assert host.ping(name).generation == before + 1


def test_an_identity_is_written_to_a_file_that_is_kept_in_data(host: Host, running: InstanceInfo) -> None:
    """The file system of /data is frozen in the snapshot: it is thawed first, or the agent would wait for itself."""
    sh(host, "web", "cp /etc/machine-id /data && mount --bind /data/machine-id /etc/machine-id")
    host.standby("web")
    host.fork("web", ["other"], start=True)
    host.restore("web")
    for name in ("web", "other"):
        own, seen = sh(host, name, "cat /data/machine-id /etc/machine-id").split()
        assert own == seen
    assert sh(host, "web", "cat /data/machine-id") != sh(host, "other", "cat /data/machine-id")


def ticks(host: Host) -> int:
    """What the workload of ``web`` has said on its console."""
    return host.logs("web")["console"].read_bytes().count(b"tick")


def test_without_an_acknowledged_identity_nothing_runs(host: Host, running: InstanceInfo) -> None:
    """The agent cannot write /etc/machine-id: the restore fails, the VMM is gone, the snapshot as it was."""
    sh(host, "web", "rm /etc/machine-id; mkdir /etc/machine-id")
    host.exec("web", ["sh", "-c", "while :; do echo tick >/dev/console; sleep 0.1; done"], detach=True)
    wait_until(lambda: ticks(host) > 0, 60, what="the workload to run")
    host.standby("web")
    ticks_before = ticks(host)
    before = fingerprints(snapshot_dir(host, "web"))
    assert artifacts.vmm_pids(str(host.home)) == set()
    with pytest.raises(GuestError, match="machine-id"):
        host.restore("web")
    assert ticks(host) == ticks_before, "the workload ran"
    assert host.get("web").state is State.STANDBY
    assert artifacts.vmm_pids(str(host.home)) == set()
    assert fingerprints(snapshot_dir(host, "web")) == before
    with pytest.raises(GuestError, match="machine-id"):
        host.fork("web", ["other"], start=True)
    assert not host.exists("other")
    host.stop("web", discard_memory=True)
    host.start("web")
    assert sh(host, "web", "cat /data/mark") == "disk-source"


def test_a_workload_is_frozen_while_it_sleeps_and_runs_afterwards(host: Host, running: InstanceInfo) -> None:
    host.exec("web", ["sh", "-c", "while :; do echo x >>/ram/ticks; usleep 10000; done"], detach=True)
    host.standby("web")
    host.restore("web")
    first = int(sh(host, "web", "wc -l </ram/ticks"))
    wait_until(lambda: int(sh(host, "web", "wc -l </ram/ticks")) > first, 60, what="the workload to go on")
    assert marks(host, "web") == ("ram-source", "disk-source")
