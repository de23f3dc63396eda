"""The verb ``pool``, and claims, as they are typed and printed."""

from __future__ import annotations

import json

import pytest

from ramet.cli.main import run
from ramet.model import MemoryPolicy
from tests.unit import fake_host
from tests.unit.fake_host import FakeHost


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    return fake_host.install(monkeypatch)


def test_a_pool_is_filled(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pool", "web", "--size", "2", "--memory-policy", "share"]) == 0
    (looked, (verb, asked)) = host.calls
    assert (looked[0], verb) == ("pool_get", "pool")
    assert (asked["source"], asked["size"], asked["memory_policy"]) == ("web", 2, MemoryPolicy.SHARE)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("web: 2 parked (2 made, 1 removed in ")
    assert second == "web: 1 lost: no VMM any more"


def test_a_pool_is_shown_and_not_touched(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pool", "web"]) == 0
    assert [verb for verb, _ in host.calls] == ["pool_get"]
    assert capsys.readouterr().out.splitlines() == ["web: 0 parked", "web: 1 stale: web is running"]


def test_all_pools_are_listed(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pool"]) == 0
    header, web, db = capsys.readouterr().out.splitlines()
    assert header.split() == ["SOURCE", "SNAPSHOT", "PARKED", "STALE", "LOST", "OWN", "MEMORY", "WHY"]
    assert web.split() == ["web", "s1", "1", "0", "0", "32", "MiB"]
    assert db.endswith("  db was deleted")
    assert header.index("WHY") == db.index("db was")


def test_json(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pool", "web", "--json"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert set(one) == {"source", "source_id", "snapshot", "why", "parked", "stale", "lost", "own_memory_bytes"}
    assert run(["pool", "--json"]) == 0
    assert [set(other) for other in json.loads(capsys.readouterr().out)] == [set(one)] * 2


def test_a_size_needs_a_source(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pool", "--size", "2"]) == 2
    assert "needs a SOURCE" in capsys.readouterr().err
    assert host.calls == []


def test_a_policy_is_of_those_that_are_made(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pool", "web", "--memory-policy", "share"]) == 2
    assert "needs a --size" in capsys.readouterr().err
    assert host.calls == []


def test_no_pools_are_told(host: FakeHost, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeHost, "pools", lambda self: ())
    assert run(["pool"]) == 0
    assert capsys.readouterr().err == "No pools.\n"


def test_a_claim_says_how_many_are_left(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fork", "web", "blue", "--from-pool"]) == 0
    ((_, asked),) = host.calls
    assert asked["from_pool"] is True
    assert capsys.readouterr().out.splitlines()[-1].endswith("; 3 left in the pool of web")
