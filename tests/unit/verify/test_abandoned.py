"""What a run of the verifier that was killed has left goes with the next run; what one is at work on, or is to keep, stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from ramet.errors import NotFoundError, VmmError
from ramet.instances.host import Host
from ramet.verify import abandoned


@dataclass
class Named:
    """An instance, or a snapshot, as far as it is asked for here."""

    name: str
    names: tuple[str, ...] = ()


@dataclass
class Pool:
    """Forks that wait, as far as they are asked for here."""

    source: str


@dataclass
class PlayedHost:
    """A store with instances and named snapshots."""

    home: Path
    instances: list[str] = field(default_factory=list)
    named: list[str] = field(default_factory=list)
    pool_sources: list[str] = field(default_factory=list)
    fails: bool = False
    vanishes: bool = False

    def snapshots(self) -> list[Named]:
        return [Named("", names=(name,)) for name in self.named]

    def exists(self, name: str) -> bool:
        return name in self.instances

    def remove(self, name: str, *, force: bool) -> None:
        assert force
        if self.vanishes:
            self.instances.remove(name)
        if self.fails or self.vanishes:
            raise VmmError("It cannot be removed.")
        self.instances.remove(name)

    def snapshot_remove(self, name: str) -> None:
        self.named.remove(name)
        if self.vanishes:
            raise NotFoundError("There is no such snapshot.")

    def pools(self) -> Sequence[Pool]:
        return [Pool(source) for source in self.pool_sources]

    def pool(self, source: str, *, size: int) -> None:
        assert size == 0
        self.pool_sources.remove(source)

    def list(self) -> Sequence[Named]:
        return [Named(name) for name in self.instances]


OTHERS = ["web", "verify-kept-0b0b0b-source", "verify-me", "verify-202611-db"]
"""A user may call an instance as he likes; of a run that was killed there is a lock."""


@pytest.fixture
def host(tmp_path: Path) -> PlayedHost:
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / "verify-0a0a0a").touch()
    return PlayedHost(
        home=tmp_path,
        instances=["verify-0a0a0a-source", "verify-0a0a0a-fork", *OTHERS],
        named=["golden", "verify-0a0a0a-golden"],
        pool_sources=["web", "verify-0a0a0a-source"],
    )


def removed(host: PlayedHost) -> list[str]:
    said: list[str] = []
    abandoned.remove(cast(Host, host), said.append)
    return said


def test_what_a_killed_run_left_is_removed_and_nothing_else(host: PlayedHost) -> None:
    (host.home / "verify-0a0a0a-qemu-system-x86_64").touch()
    assert removed(host) == ["removing what a run that was killed has left (verify-0a0a0a)"]
    assert [path.name for path in host.home.iterdir()] == ["locks"]
    assert host.instances == OTHERS
    assert host.named == ["golden"]
    assert host.pool_sources == ["web"]
    assert removed(host) == []


def test_what_a_run_is_at_work_on_stays_until_it_has_ended(host: PlayedHost) -> None:
    with abandoned.at_work(cast(Host, host), "0a0a0a"):
        assert removed(host) == []
        assert "verify-0a0a0a-fork" in host.instances
    assert list((host.home / "locks").iterdir()) == []


def test_a_run_that_failed_leaves_its_lock_to_the_next(host: PlayedHost) -> None:
    def run() -> None:
        with abandoned.at_work(cast(Host, host), "0c0c0c"):
            host.instances.append("verify-0c0c0c-source")
            raise VmmError("It ended badly.")

    with pytest.raises(VmmError):
        run()
    assert len(removed(host)) == 2
    assert host.instances == OTHERS
    assert list((host.home / "locks").iterdir()) == []


def test_one_that_cannot_be_removed_is_told(host: PlayedHost) -> None:
    host.fails = True
    with pytest.raises(VmmError):
        removed(host)


def test_another_run_may_be_at_the_same(host: PlayedHost) -> None:
    host.vanishes = True
    removed(host)
    assert host.instances == OTHERS
    assert host.named == ["golden"]
