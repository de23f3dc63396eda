"""``vmm-confined``: what is a failure, what is merely weak, and what is enforced."""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ramet.hypervisors import confinement
from ramet.linux import seccomp
from ramet.verify import evidence, looks
from ramet.verify.checks import CheckResult, Ledger, Strength, Verdict
from ramet.verify.world import World

LIMITS = {**looks.LIMITS, **looks.LIMITS_OF_A_USER}
GOOD = evidence.Privileges(
    user=0x7000_0001, capabilities=0, no_new_privileges=True, filters=2, mergeable_bytes=0, limits=LIMITS
)


@dataclass
class Played:
    """As much of a world as the look needs."""

    ledger: Ledger = field(default_factory=lambda: Ledger("base", ["vmm-confined"]))
    users: dict[str, int] = field(default_factory=dict)
    why_no_vmm_users: str | None = None

    def info(self, _role: str) -> Any:
        return SimpleNamespace(pid=os.getpid(), name="fork")


def looked(monkeypatch: pytest.MonkeyPatch, found: evidence.Privileges, **world: Any) -> CheckResult:
    monkeypatch.setattr(evidence, "privileges", lambda _pid: found)
    played = Played(**world)
    looks.confined(cast(World, played), "fork", at="fork restored")
    return played.ledger.results()[0]


def but(**changed: Any) -> evidence.Privileges:
    return replace(GOOD, **changed)


@pytest.fixture(autouse=True)
def filters_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp, "why_not", lambda: None)


def test_a_confined_one_is_enforced(monkeypatch: pytest.MonkeyPatch) -> None:
    found = looked(monkeypatch, GOOD, users={"source": 0x7000_0002, "fork": 0x7000_0009})
    assert (found.verdict, found.strength) == (Verdict.PASS, Strength.ENFORCED)


@pytest.mark.parametrize(
    ("found", "world", "words"),
    [
        (but(no_new_privileges=False), {}, "no no_new_privs"),
        (but(filters=1), {}, "1 filters of system calls"),
        (but(mergeable_bytes=1 << 21), {}, "may be merged with other processes' memory"),
        (but(capabilities=1 << 21), {}, "has capabilities"),
        (but(user=os.geteuid()), {}, "as we do"),
        (but(limits={**LIMITS, "Max open files": 2049}), {}, "no limit of 2048, but of 2049: max open files"),
        (but(limits={**LIMITS, "Max core file size": None}), {}, "no limit of 1, but of None: max core file size"),
        (but(limits=looks.LIMITS), {}, "max processes"),
        (GOOD, {"users": {"source": GOOD.user}}, "as source's VMM does"),
    ],
)
def test_what_is_not_as_it_can_be_here_fails(
    monkeypatch: pytest.MonkeyPatch, found: evidence.Privileges, world: dict[str, Any], words: str
) -> None:
    result = looked(monkeypatch, found, **world)
    assert result.verdict is Verdict.FAIL
    assert words in str(result.reason)


@pytest.mark.parametrize(
    ("found", "why_no_users", "why_no_filter", "words"),
    [
        (but(user=os.geteuid(), capabilities=1), "root lacks capabilities", None, "root lacks capabilities"),
        (but(filters=1), None, "there is no seccomp", "there is no seccomp"),
        (but(filters=None), None, None, "does not count"),
        (but(limits={**LIMITS, "Max core file size": 0}), None, None, "its core would be piped"),
    ],
)
def test_what_the_host_cannot_do_is_weak(
    monkeypatch: pytest.MonkeyPatch,
    found: evidence.Privileges,
    why_no_users: str | None,
    why_no_filter: str | None,
    words: str,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(seccomp, "why_not", lambda: why_no_filter)
    (tmp_path / "core_pattern").write_text("|/lib/systemd/systemd-coredump %P\n")
    monkeypatch.setattr(looks, "CORE_PATTERN", tmp_path / "core_pattern")
    result = looked(monkeypatch, found, why_no_vmm_users=why_no_users)
    assert (result.verdict, result.strength) == (Verdict.PASS, Strength.HELD)
    assert f"weak: {words}" in result.facts[0].found or words in result.facts[0].found


def test_a_process_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    found = evidence.privileges(os.getpid())
    assert found.user == os.geteuid()
    assert not found.no_new_privileges
    assert found.mergeable_bytes == 0
    assert bool(found.capabilities) == (os.geteuid() == 0)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert found.limits["Max open files"] == (None if most == resource.RLIM_INFINITY else most)
    assert set(found.limits) >= set(LIMITS)


def test_the_limits_are_those_that_vmms_are_given() -> None:
    names = {resource.RLIMIT_CORE: "Max core file size", resource.RLIMIT_NOFILE: "Max open files"}
    names |= {resource.RLIMIT_MEMLOCK: "Max locked memory", resource.RLIMIT_NICE: "Max nice priority"}
    names |= {resource.RLIMIT_RTPRIO: "Max realtime priority"}
    assert {names[number]: most for number, most in confinement.LIMITS.items()} == looks.LIMITS
    assert looks.LIMITS_OF_A_USER == {"Max processes": confinement.TASKS}
