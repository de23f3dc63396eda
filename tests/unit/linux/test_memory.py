"""How much memory is left: what the kernel has, or what our control groups leave of their limits."""

from __future__ import annotations

from pathlib import Path

import pytest

from ramet.linux import memory


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "meminfo").write_text("MemTotal: 16000 kB\nMemFree: 1 kB\nMemAvailable:    8000 kB\n")
    (tmp_path / "cgroup").write_text("4:memory:/old\n0::/a/b\n")
    (tmp_path / "groups" / "a" / "b").mkdir(parents=True)
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "OWN_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "groups")
    return tmp_path / "groups"


def limit(group: Path, maximum: str, current: str) -> None:
    (group / "memory.max").write_text(f"{maximum}\n")
    (group / "memory.current").write_text(f"{current}\n")


def test_without_a_limit_it_is_what_the_kernel_has(host: Path) -> None:
    assert memory.available_bytes() == 8000 * 1024
    limit(host / "a" / "b", "max", "5000")
    assert memory.available_bytes() == 8000 * 1024


def test_the_tightest_limit_counts_be_it_of_a_group_above(host: Path) -> None:
    limit(host / "a" / "b", "6000000", "1000000")
    assert memory.available_bytes() == 5000000
    limit(host / "a", "4000000", "3000000")
    assert memory.available_bytes() == 1000000
    limit(host / "a", "4000000", "4000001")
    assert memory.available_bytes() == 0


def test_what_limits_us_at_most_is_told(host: Path) -> None:
    assert memory.limit_bytes() is None
    limit(host / "a" / "b", "6000000", "1000000")
    limit(host / "a", "max", "3000000")
    assert memory.limit_bytes() == 6000000
    limit(host / "a", "4000000", "3000000")
    assert memory.limit_bytes() == 4000000


def test_this_host_can_be_asked() -> None:
    assert memory.available_bytes() > 0
