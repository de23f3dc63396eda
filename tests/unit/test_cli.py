"""The verbs that change something, against a Host that records what it is asked: arguments, lines for people, JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ramet.cli import context
from ramet.cli.main import run
from ramet.errors import StateError
from ramet.model import Accelerator, ForkFailure, InstanceInfo, MemoryPolicy
from tests.unit.fake_host import FakeHost, install


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    return install(monkeypatch)


def test_create_passes_sizes_in_their_units(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["create", "web", "--memory", "2G", "--cpus", "2", "--disk", "512", "--accelerator", "tcg"]) == 0
    assert host.calls == [
        (
            "create",
            {
                "name": "web",
                "image": "micro",
                "memory_mib": 2048,
                "cpus": 2,
                "disk_bytes": 512 << 20,
                "hypervisor": None,
                "accelerator": Accelerator.TCG,
            },
        )
    ]
    out = capsys.readouterr().out
    assert out.startswith("web: running (booted in ")
    assert "\x1b" not in out


def test_create_says_what_was_chosen_and_why(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    host.last_note = "QEMU with KVM, which works here"
    assert run(["create", "web"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["  QEMU with KVM, which works here"]


@pytest.mark.parametrize("bad", ["0.5G", "lots", "-1", "256M256M", "1P", ""])
@pytest.mark.parametrize("option", ["--memory", "--disk"])
def test_a_bad_size_is_refused_before_the_host_is_asked(
    host: FakeHost, option: str, bad: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["create", "web", option, bad]) == 2
    assert host.calls == []
    assert option in capsys.readouterr().err


def test_memory_that_is_no_whole_number_of_mib_is_refused(host: FakeHost) -> None:
    assert run(["create", "web", "--memory", "300000K"]) == 2
    assert host.calls == []


@pytest.mark.parametrize("bad", ["nan", "inf", "0", "-3"])
def test_a_time_limit_is_positive_and_finite(host: FakeHost, bad: str) -> None:
    assert run(["stop", "web", "--timeout", bad]) == 2
    assert run(["create", "web", "--boot-timeout", bad]) == 2
    assert host.calls == []


@pytest.mark.parametrize(
    ("verb", "state"),
    [
        ("pause", "paused"),
        ("resume", "running"),
        ("standby", "standby"),
        ("restore", "running"),
        ("stop", "stopped"),
        ("start", "running"),
    ],
)
def test_state_verbs_say_what_they_did(
    host: FakeHost, verb: str, state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([verb, "web", "db"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" (")[0] for line in lines] == [f"web: {state}", f"db: {state}"]
    assert all(" in " in line for line in lines)


def test_a_note_of_the_host_replaces_the_time(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    host.last_note = "already running"
    assert run(["start", "web"]) == 0
    assert capsys.readouterr().out == "web: running (already running)\n"


def test_several_names_are_all_tried_and_the_first_failure_gives_the_status(
    host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["standby", "nosuch", "web", "web"]) == 3
    assert [arguments["name"] for _, arguments in host.calls] == ["nosuch", "web"]
    captured = capsys.readouterr()
    assert captured.out.startswith("web: standby")
    assert captured.err == "ramet: error: There is no instance 'nosuch'.\n  `ramet ls` lists them.\n"


def test_several_names_with_json_give_an_array(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["standby", "--json", "web", "nosuch"]) == 3
    first, second = json.loads(capsys.readouterr().out)
    assert (first["name"], first["state"], first["snapshot"]["id"]) == ("web", "standby", "s1")
    assert second["name"] == "nosuch"
    assert second["error"]["code"] == "not-found"


def test_restore_passes_what_may_be_discarded(host: FakeHost) -> None:
    assert run(["restore", "web", "--snapshot", "golden", "--discard-memory", "--discard-disk"]) == 0
    assert host.calls == [
        (
            "restore",
            {
                "name": "web",
                "snapshot": "golden",
                "discard_memory": True,
                "discard_disk": True,
                "verified": False,
            },
        )
    ]


def test_rolling_several_back_to_one_snapshot_is_refused(host: FakeHost) -> None:
    assert run(["restore", "web", "db", "--snapshot", "golden"]) == 2
    assert host.calls == []


def test_stop_passes_its_options(host: FakeHost) -> None:
    assert run(["stop", "web", "--force", "--timeout", "5", "--discard-memory"]) == 0
    assert host.calls == [("stop", {"name": "web", "discard_memory": True, "timeout_s": 5.0, "force": True})]


def test_rm_all_removes_each(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["rm", "--all", "--force", "--json"]) == 0
    assert host.calls == [("remove", {"name": "web", "force": True}), ("remove", {"name": "db", "force": True})]
    assert json.loads(capsys.readouterr().out) == [{"name": "web", "deleted": True}, {"name": "db", "deleted": True}]


def test_rm_force_says_first_what_goes(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    plan = (
        "web: running; kills its VMM (process 4711): its memory and disk are lost; deletes snapshot s1; "
        "snapshot s2 stays (name golden; instance blue (sleeps on it))\n"
    )
    assert run(["rm", "--force", "web"]) == 0
    assert capsys.readouterr().out == f"{plan}web: deleted\n"
    assert run(["rm", "web"]) == 0
    assert capsys.readouterr().out == "web: deleted\n"
    host.calls.clear()
    assert run(["rm", "--dry-run", "web"]) == 0
    assert capsys.readouterr().out == plan
    assert run(["rm", "-n", "web", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["keeps_snapshots"] == {
        "s2": ["name golden", "instance blue (sleeps on it)"]
    }
    assert host.calls == [], "a dry run touches nothing"


@pytest.mark.parametrize("argv", [["rm"], ["rm", "--all", "web"]])
def test_rm_wants_names_or_all(host: FakeHost, argv: list[str]) -> None:
    assert run(argv) == 2
    assert host.calls == []


def test_fork_reports_pause_and_method(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fork", "web", "a", "b", "--start"]) == 0
    ((verb, asked),) = host.calls
    on_result = asked.pop("on_result")
    assert verb == "fork"
    assert asked == {
        "source": "web",
        "names": ("a", "b"),
        "count": None,
        "start": True,
        "hypervisor": None,
        "memory_policy": MemoryPolicy.CLONE,
        "partial": False,
        "from_pool": False,
    }
    on_result("a", None)
    out = capsys.readouterr().out
    assert out.splitlines()[:2] == ["a: standby (forked from web)", "b: standby (forked from web)"]
    assert "by reflink" in out
    assert "web was paused for 12 ms" in out


def test_fork_passes_the_memory_policy_and_says_whose_memory_it_is(
    host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["fork", "web", "--memory-policy", "share"]) == 0
    assert host.calls[0][1]["memory_policy"] is MemoryPolicy.SHARE
    assert ", memory shared with web" in capsys.readouterr().out


def test_fork_json_is_the_report(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fork", "web", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["source_pause_s"], report["method"]) == (0.012, "reflink")
    assert [made["name"] for made in report["instances"]] == ["web-1"]


def test_a_fork_that_is_not_there_is_told_and_gives_the_status(
    host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    host.fork_failures = (
        ForkFailure(
            name="b", code="no-room", exit_status=9, message="There is room for 1 of 2 forks.", hint="Make fewer."
        ),
    )
    assert run(["fork", "web", "a", "b", "--partial"]) == 9
    told = capsys.readouterr()
    assert told.err == "ramet: error: b: There is room for 1 of 2 forks.\n  Make fewer.\n"
    assert told.out.splitlines()[0] == "a: standby (forked from web)"
    assert "1 of 2 made in" in told.out
    assert run(["fork", "web", "a", "b", "--partial", "--json"]) == 9
    assert json.loads(capsys.readouterr().out)["failures"][0]["name"] == "b"


def test_what_is_left_of_a_fork_that_failed_is_told(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    host.fork_failures = (
        ForkFailure(
            name="b",
            code="guest",
            exit_status=15,
            message="It did not come up.",
            hint="Try again.",
            left_id="0123456789ab",
            left_why="Process 7 is still there 10 s after SIGKILL.",
        ),
    )
    assert run(["fork", "web", "a", "b", "--partial"]) == 15
    assert capsys.readouterr().err.splitlines() == [
        "ramet: error: b: It did not come up.",
        "  What there is of it could not be removed again: Process 7 is still there 10 s after SIGKILL.",
        "  Try again.",
        "  Remove it: ramet rm --force 0123456789ab",
    ]


@pytest.mark.parametrize("extra", [["-n", "3", "a", "b"], ["-n", "many"]])
def test_fork_counts_are_checked(host: FakeHost, extra: list[str]) -> None:
    assert run(["fork", "web", *extra]) == 2
    assert host.calls == []


def test_the_home_option_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    homes: list[Path | None] = []

    def make_host(home: Path | None, _say: Callable[[str], None]) -> FakeHost:
        homes.append(home)
        return FakeHost()

    monkeypatch.setattr(context, "make_host", make_host)
    monkeypatch.chdir(tmp_path)
    assert run(["--home", "store", "ls", "-q"]) == 0
    assert run(["ls", "-q"]) == 0
    assert homes == [tmp_path / "store", None]
    assert run(["--home", "a\nb", "ls"]) == 2
    assert run(["--home", "", "ls"]) == 2


def test_a_wrong_state_is_reported_with_its_objects(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(name: str) -> InstanceInfo:
        raise StateError(f"Cannot pause {name!r}.", actual="standby", required=["running"], hint="Wake it.")

    monkeypatch.setattr(host, "pause", fails)
    assert run(["pause", "web", "--json"]) == 4
    ((failed),) = json.loads(capsys.readouterr().out)
    assert failed["error"] == {
        "code": "wrong-state",
        "exit_status": 4,
        "message": "Cannot pause 'web'.",
        "hint": "Wake it.",
        "actual": "standby",
        "required": ["running"],
    }
