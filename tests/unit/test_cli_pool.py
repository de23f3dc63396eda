"""The verb ``pool``, and claims, as they are typed and printed."""

from __future__ import annotations

import json

import pytest

from ramet.cli.main import run
from ramet.errors import HostError
from ramet.model import MemoryPolicy, PoolInfo, State
from tests.unit import fake_host
from tests.unit.fake_host import FakeHost, instance, pool_of


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
    header, web, old = capsys.readouterr().out.splitlines()
    assert header.split() == ["SOURCE", "SNAPSHOT", "PARKED", "STALE", "LOST", "OWN", "MEMORY", "WHY"]
    assert web.split() == ["web", "s1", "1", "0", "0", "32", "MiB"]
    assert old.endswith("  old was deleted")
    assert header.index("WHY") == old.index("old was")


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
    monkeypatch.setattr("ramet.cli.output.on_terminal", lambda: True)
    assert run(["pool"]) == 0
    assert capsys.readouterr().err == "No pools. `ramet pool SOURCE --size K` fills one.\n"


def test_a_claim_says_how_many_are_left(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fork", "web", "blue", "--from-pool"]) == 0
    ((_, asked),) = host.calls
    assert asked["from_pool"] is True
    assert capsys.readouterr().out.splitlines()[-1].endswith("; 3 left in the pool of web")


@pytest.mark.parametrize(
    ("verb", "pool", "said"),
    [
        (
            "restore",
            pool_of("web", snapshot=None, why="web is running", stale=("p1", "p2")),
            (
                "web: 2 parked forks in its pool cannot be claimed (stale): web is running; once it sleeps, "
                "`ramet pool web --size 2` replaces them, and --size 0 empties the pool"
            ),
        ),
        (
            "standby",
            pool_of("web", stale=("p1",)),
            (
                "web: 1 parked fork in its pool cannot be claimed (stale): of an earlier snapshot; "
                "`ramet pool web --size 1` replaces it"
            ),
        ),
        ("restore", pool_of("web", parked=("p1",)), None),
        ("pause", pool_of("web", snapshot=None, why="web is running", stale=("p1",)), None),
    ],
)
def test_a_source_that_moves_on_says_what_becomes_of_its_pool(
    host: FakeHost, capsys: pytest.CaptureFixture[str], verb: str, pool: PoolInfo, said: str | None
) -> None:
    host.all_pools = [pool, pool_of("db", stale=("p9",))]
    assert run([verb, "web"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ([said] if said else [])


@pytest.mark.parametrize(
    ("argv", "verb", "left"),
    [
        (
            ["rm", "web"],
            "remove",
            pool_of("1a", snapshot=None, why="web (1a) was deleted", stale=("p1",), source_id="id-web"),
        ),
        (
            ["snapshot", "rm", "golden"],
            "snapshot_remove",
            pool_of("snapshot:1a", snapshot=None, why="the snapshot was deleted", stale=("p1",), source_id="id-web"),
        ),
    ],
)
def test_what_is_removed_says_whose_pool_it_leaves(
    host: FakeHost,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    argv: list[str],
    verb: str,
    left: PoolInfo,
) -> None:
    host.all_pools = [pool_of("web", parked=("p1",)), pool_of("old", stale=("p2",))]

    def removed(_self: FakeHost, _name: str, **_choices: object) -> None:
        host.all_pools = [left, pool_of("old", stale=("p2",))]

    monkeypatch.setattr(FakeHost, verb, removed)
    assert run(argv) == 0
    name = argv[-1]
    empties = f"`ramet pool {left.source} --size 0` empties the pool"
    said = f"{name}: 1 parked fork in its pool cannot be claimed any more: {left.why}; {empties}"
    assert capsys.readouterr().out.splitlines() == [f"{name}: deleted", said]


def _unreadable(_host: FakeHost) -> None:
    raise HostError("Could not read instance.json: Input/output error.")


@pytest.mark.parametrize("verb", ["restore", "standby", "stop", "start", "rm"])
def test_pools_that_cannot_be_looked_at_fail_no_verb(
    host: FakeHost, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """It has done what it was to do, and does the rest of it."""
    monkeypatch.setattr(FakeHost, "pools", _unreadable)
    assert run([verb, "web", "db"]) == 0
    out, err = capsys.readouterr()
    assert [line.split(":")[0] for line in out.splitlines()] == ["web", "db"]
    assert "Input/output error" in err


def test_of_many_that_are_removed_the_pools_are_looked_at_once_each(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[FakeHost] = []

    def look(found: FakeHost) -> tuple[PoolInfo, ...]:
        looks.append(found)
        return ()

    monkeypatch.setattr(FakeHost, "pools", look)
    assert run(["rm", "web", "db"]) == 0
    assert len(looks) == 3, "once before, and once after each"
    assert run(["rm", "web", "db", "--json"]) == 0
    assert len(looks) == 3, "an array says nothing of it"


def test_a_stale_fork_is_told_from_one_that_can_be_claimed(
    host: FakeHost, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [instance("p1", State.PARKED, pool="1a"), instance("p2", State.PARKED, pool="1a", stale=True)]
    monkeypatch.setattr(FakeHost, "list", lambda _self: both)
    assert run(["ls"]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()[1:]] == ["parked", "parked(stale)"]
    assert run(["tree"]) == 0
    assert {"p1 (parked)", "p2 (parked(stale))"} <= set(capsys.readouterr().out.splitlines())
    monkeypatch.setattr(FakeHost, "get", lambda _self, _name: both[1])
    assert run(["show", "p2"]) == 0
    state = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("state"))
    assert state.split(maxsplit=1)[1] == (
        "parked(stale): its source is not any more what it descends from; `ramet pool` says why, and fills the pool anew"
    )
