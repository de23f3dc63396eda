"""What a VMM may use of its host is limited; what comes of it is in the hostile program's acts (test_confinement.py)."""

from __future__ import annotations

import os
import resource

import pytest

from ramet.hypervisors import confinement
from ramet.linux import seccomp
from ramet.model import MIB
from tests.capabilities import requires
from tests.unit.hypervisors.confined import FEWER_TASKS, PYTHON, Place, only


@pytest.mark.parametrize("users", [pytest.param(True, marks=requires("vmm-users"), id="a user of its own"), False])
def test_every_limit_is_set(place: Place, monkeypatch: pytest.MonkeyPatch, users: bool) -> None:
    """Some of them a host may have set for us already, so that no act of a program shows whether they were."""
    only(monkeypatch, *(("user",) if users else ()))
    set_limits: dict[int, tuple[int, int]] = {}
    really = resource.prlimit

    def prlimit(pid: int, number: int, *limits: tuple[int, int]) -> tuple[int, int]:
        if limits:
            set_limits[number] = limits[0]
        return really(pid, number, *limits)

    monkeypatch.setattr(resource, "prlimit", prlimit)
    place.run()
    most = {resource.RLIMIT_CORE: 1, resource.RLIMIT_MEMLOCK: 0, resource.RLIMIT_RTPRIO: 0, resource.RLIMIT_NICE: 0}
    most |= {resource.RLIMIT_NOFILE: 2048, resource.RLIMIT_FSIZE: 128 * MIB}
    most |= {resource.RLIMIT_NPROC: FEWER_TASKS} if users else {}
    assert set_limits.keys() == most.keys()
    assert all(0 <= soft == hard <= most[number] for number, (soft, hard) in set_limits.items()), set_limits


def test_a_file_may_become_as_large_as_the_disk_or_the_memory_is(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def most(*, ends_at_file_limit: bool = False) -> int | None:
        confined = confinement.of(
            place.spec, PYTHON, kvm=False, memory_is_written=False, ends_at_file_limit=ends_at_file_limit
        )
        return confined.limits.get(resource.RLIMIT_FSIZE)

    assert most() == 128 * MIB
    os.truncate(place.spec.disk, 129 * MIB)
    assert most() == 129 * MIB
    monkeypatch.setattr(seccomp, "why_not", lambda: None)
    assert most(ends_at_file_limit=True) == 129 * MIB, "the filter keeps the signal from it"
    monkeypatch.setattr(seccomp, "why_not", lambda: "no seccomp")
    assert most(ends_at_file_limit=True) is None, "a guest's log would end it"
    assert most() == 129 * MIB
