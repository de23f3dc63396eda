"""Parked forks with real guests: isolated while they wait, somebody else once they are claimed, never given out twice."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest

from ramet import Host, process
from ramet.errors import ConflictError, GuestError, StateError
from ramet.guests.client import AgentClient
from ramet.instances import guest
from ramet.model import MIB, Failure, InstanceInfo, MemoryPolicy, State
from ramet.testing import assert_isolated
from ramet.verify.fingerprints import fingerprints
from tests import artifacts
from tests.file_systems import on_ext4
from tests.vm.guests import marks, set_marks, sh

pytestmark = on_ext4
DRAW = "cat /proc/sys/kernel/random/uuid; head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n'"
OWN_MAX_BYTES = 100 * MIB
"""Of a VMM under TCG whose guest has done nothing yet."""
COUNT = "cat >/etc/ramet/resume.d/10-look <<'END'\n#!/bin/sh\nwc -c </ram/ticks >>/run/ramet/seen\nEND\n"
SHIFT = """\
cat >/etc/ramet/resume.d/20-shift <<'END'
#!/bin/sh
[ -e /run/ramet/shifted ] || { date -s @$(($(date +%s) + 3600)) && date +%s >/run/ramet/shifted; }
END
chmod 755 /etc/ramet/resume.d/20-shift
"""
"""The clock of a fork is an hour off once it is parked, and by nothing but the claim right again."""
TICK = "while :; do printf x >>/ram/ticks; usleep 20000; done"


@pytest.fixture
def source(host: Host, running: InstanceInfo) -> Path:
    """``web``, asleep, with a workload that ticks, and hooks that say how far it was: the directory of its snapshot."""
    sh(host, "web", f"rm -f /run/ramet/seen /run/ramet/shifted\n{COUNT}chmod 755 /etc/ramet/resume.d/10-look\n{SHIFT}")
    host.exec("web", ["sh", "-c", TICK], detach=True)
    sh(host, "web", "until [ -s /ram/ticks ]; do usleep 20000; done")
    snapshot = host.standby("web").snapshot
    assert snapshot is not None
    return Path(snapshot.dir)


def cpu_ticks(info: InstanceInfo) -> int:
    """User and system time of its VMM, in ticks of the clock (proc(5), stat)."""
    assert info.pid is not None
    fields = Path(f"/proc/{info.pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@pytest.mark.parametrize("policy", MemoryPolicy)
def test_parked_forks_stand_still_and_those_that_are_claimed_diverge(
    host: Host, source: Path, policy: MemoryPolicy
) -> None:
    """H50, H51, H52."""
    began = time.time()
    before = fingerprints(source) if policy is MemoryPolicy.CLONE else None
    parked = host.pool("web", size=3, memory_policy=policy).parked
    assert len(parked) == 3
    infos = [host.get(one) for one in parked]
    assert {info.state for info in infos} == {State.PARKED}
    assert {info.pool for info in infos} == {host.get("web").id}
    assert {info.memory_policy for info in infos} == {policy}
    assert_isolated(host, "web", *parked)
    assert host.pool_get("web").own_memory_bytes < 3 * OWN_MAX_BYTES
    used = [cpu_ticks(info) for info in infos]
    time.sleep(0.5)
    since = [cpu_ticks(info) - was for info, was in zip(infos, used, strict=True)]
    assert all(ticks < 10 for ticks in since), f"their vCPUs are stopped, and they used {since}"
    report = host.fork("web", ["a", "b"], from_pool=True)
    assert [info.name for info in report.instances] == ["a", "b"]
    assert [info.state for info in report.instances] == [State.RUNNING] * 2
    assert report.left_in_pool == 1
    drawn: set[str] = set()
    for info in report.instances:
        asked = time.time()
        told = sh(host, info.name, f"hostname; cat /etc/machine-id; date +%s; {DRAW}").split()
        assert told[0] == info.name
        assert asked - 3 < int(told[2]) < time.time() + 3
        drawn |= {told[1], *told[3:]}
        shifted = int(sh(host, info.name, "cat /run/ramet/shifted"))
        assert shifted > began + 3000, "its clock was an hour off while it was parked"
        at_park, at_claim = sh(host, info.name, "tail -n 2 /run/ramet/seen").split()
        assert at_park == at_claim, "its workload has stood still"
        sh(host, info.name, f"until [ $(wc -c </ram/ticks) -gt {at_claim} ]; do usleep 20000; done")
        assert marks(host, info.name) == ("ram-source", "disk-source")
        set_marks(host, info.name, f"ram-{info.name}", f"disk-{info.name}")
    assert len(drawn) == 6
    assert_isolated(host, "web", "a", "b", parked[2])
    (last,) = host.fork("web", "c", from_pool=True).instances
    assert last.id == parked[2]
    assert marks(host, "c") == ("ram-source", "disk-source")
    host.standby("a")
    host.restore("a")
    assert marks(host, "a") == ("ram-a", "disk-a")
    if before is not None:
        assert fingerprints(source) == before
    host.restore("web")
    assert marks(host, "web") == ("ram-source", "disk-source")
    assert host.check_store().whole


def test_two_claims_never_get_the_same_fork(host: Host, source: Path) -> None:
    parked = host.pool("web", size=4).parked
    claimed: list[str] = []
    refused: list[ConflictError] = []

    def claim() -> None:
        try:
            claimed.extend(info.id for info in Host(host.home).fork("web", from_pool=True).instances)
        except ConflictError as err:
            refused.append(err)

    threads = [threading.Thread(target=claim) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == sorted(parked)
    assert len(refused) == 2
    assert {info.name for info in host.list()} == {"web", "web-1", "web-2", "web-3", "web-4"}
    for number in range(1, 5):
        assert sh(host, f"web-{number}", "hostname") == f"web-{number}"


def test_one_whose_vmm_died_is_skipped_told_and_replaced(
    host: Host, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = host.pool("web", size=2).parked
    pid = host.get(first).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    process.wait_until(lambda: host.get(first).state is State.FAILED, 30, what="its end to be seen")
    assert host.get(first).failure is Failure.VMM_LOST
    assert host.pool_get("web").lost == (first,)
    (claimed,) = host.fork("web", from_pool=True).instances
    assert claimed.id == second
    assert f"{first} of web is skipped" in caplog.text
    with pytest.raises(ConflictError, match="No fork of 'web' is parked"):
        host.fork("web", from_pool=True)
    again = host.pool("web", size=1)
    assert (len(again.parked), again.lost) == (1, ())
    assert not host.exists(first)


def test_a_pool_of_what_the_source_was_is_refused_and_replaced(host: Host, source: Path) -> None:
    old = host.pool("web", size=1).parked
    host.restore("web")
    set_marks(host, "web", "ram-later", "disk-later")
    with pytest.raises(StateError, match="earlier snapshot: web is running"):
        host.fork("web", from_pool=True)
    host.standby("web")
    with pytest.raises(ConflictError, match="web has slept again since"):
        host.fork("web", from_pool=True)
    assert host.pool_get("web").stale == old
    new = host.pool("web", size=1)
    assert new.stale == ()
    assert set(new.parked).isdisjoint(old)
    host.fork("web", "b", from_pool=True)
    assert marks(host, "b") == ("ram-later", "disk-later")


class KilledError(BaseException):
    """Stands for what no clean-up may swallow."""


def test_what_fails_half_way(host: Host, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool is filled or not; a claim that is interrupted leaves its fork parked; a guest that does not take its identity is
    never let run: its VMM is ended, and the next fork taken.
    """
    rehearsals: list[str] = []

    def fail_late(_agent: AgentClient, _run_dir: Path) -> None:
        rehearsals.append("")
        if len(rehearsals) > 1:
            raise GuestError("It does not rehearse.")

    with monkeypatch.context() as patched:
        patched.setattr(guest, "rehearse", fail_late)
        with pytest.raises(GuestError, match="rehearse"):
            host.pool("web", size=3)
    assert [info.name for info in host.list()] == ["web"]
    assert artifacts.vmm_pids(str(host.home)) == set()

    parked, second = host.pool("web", size=2).parked

    def interrupt(*_arguments: object, **_named: object) -> None:
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(AgentClient, "identity", interrupt)
        with pytest.raises(KilledError):
            host.fork("web", "a", from_pool=True)
    assert host.get(parked).state is State.PARKED
    assert not host.exists("a")
    used = cpu_ticks(host.get(parked))
    time.sleep(0.3)
    assert cpu_ticks(host.get(parked)) - used < 10, "its vCPUs are stopped again"
    (claimed,) = host.fork("web", "a", from_pool=True).instances
    assert claimed.id == parked
    seen = sh(host, "a", "tail -n 2 /run/ramet/seen").split()
    assert seen[0] == seen[1], "its workload has stood still"

    def refuse(*_arguments: object, **_named: object) -> NoReturn:
        raise GuestError("It does not want to.")

    with monkeypatch.context() as patched:
        patched.setattr(AgentClient, "identity", refuse)
        with pytest.raises(ConflictError, match="parked any more"):
            host.fork("web", "b", from_pool=True)
    assert host.pool_get("web").lost == (second,)
    assert host.get(second).pid is None
    assert not host.exists("b")
    assert len(host.pool("web", size=2).parked) == 2
    identity, given = AgentClient.identity, []

    def refuse_second(self: AgentClient, **arguments: Any) -> tuple[str, ...]:
        given.append(arguments["hostname"])
        return identity(self, **arguments) if len(given) == 1 else refuse()

    with monkeypatch.context() as patched:
        patched.setattr(AgentClient, "identity", refuse_second)
        with pytest.raises(ConflictError, match="parked any more"):
            host.fork("web", ["b", "c"], from_pool=True)
    assert given == ["b", "c"]
    (ended,) = host.pool_get("web").lost
    assert {info.name for info in host.list()} == {"web", "a", ended}, "all are claimed, or none"
    assert host.check_store(repair=True).whole
