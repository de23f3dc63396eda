"""Every verb, against a Host that records what it is asked: arguments, lines for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ramet.cli import context
from ramet.cli.main import run
from ramet.errors import NotFoundError, StateError
from ramet.model import (
    Accelerator,
    Ancestor,
    Capability,
    DiskUse,
    Failure,
    ForkReport,
    Hypervisor,
    Image,
    InstanceInfo,
    Method,
    SnapshotInfo,
    SnapshotKind,
    State,
)

ESCAPE = "\x1b"


def instance(name: str, state: State = State.RUNNING, **changes: Any) -> InstanceInfo:
    fields: dict[str, Any] = {
        "id": f"id-{name}",
        "name": name,
        "state": state,
        "failure": None,
        "failure_detail": None,
        "hypervisor": Hypervisor.QEMU,
        "accelerator": Accelerator.TCG,
        "pid": 4711 if state is State.RUNNING else None,
        "memory_mib": 256,
        "cpus": 1,
        "disk_bytes": 1 << 30,
        "image": "abc123",
        "created_at_unix_s": 1_700_000_000.0,
        "lineage": (),
        "snapshot": None,
        "mapped_snapshot": None,
        "diff_base": None,
        "live_disk": None,
        "mapped_memory": None,
        "run_dir": f"/store/instances/id-{name}/run",
        "logs": {"console": "/c", "vmm": "/v"},
    }
    return InstanceInfo(**(fields | changes))


def snapshot(snapshot_id: str, *names: str, of: str = "web") -> SnapshotInfo:
    return SnapshotInfo(
        id=snapshot_id,
        names=names,
        dir=f"/store/snapshots/{snapshot_id}",
        memory="/m",
        vmstate="/s",
        disk="/d",
        method=Method.REFLINK,
        kind=SnapshotKind.DIFF,
        parent=None,
        instance_id=f"id-{of}",
        instance_name=of,
        created_at_unix_s=1_700_000_000.0,
        memory_mib=256,
        written_bytes=1536,
        referenced_by=(f"instance {of} (sleeps on it)",),
    )


IMAGE = Image(
    digest="abc123",
    name="micro",
    created_at_unix_s=1_700_000_000.0,
    kernel_version="6.1.0",
    kernel="vmlinuz",
    initrd="initrd",
    cmdline="quiet",
    inputs={},
    size_bytes=20 << 20,
)


class FakeHost:
    """Knows ``web`` and ``db``; anything else is not found."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.last_note: str | None = None
        self.log_path = Path("/nonexistent")

    def _did(self, verb: str, name: str, **arguments: Any) -> None:
        self.calls.append((verb, {"name": name, **arguments}))
        if name not in ("web", "db"):
            raise NotFoundError(f"There is no instance {name!r}.", hint="`ramet ls` lists them.")

    def create(self, name: str, **arguments: Any) -> InstanceInfo:
        self.calls.append(("create", {"name": name, **arguments}))
        return instance(name)

    def pause(self, name: str) -> InstanceInfo:
        self._did("pause", name)
        return instance(name, State.PAUSED)

    def resume(self, name: str) -> InstanceInfo:
        self._did("resume", name)
        return instance(name)

    def standby(self, name: str) -> InstanceInfo:
        self._did("standby", name)
        return instance(name, State.STANDBY, snapshot=snapshot("s1"))

    def restore(self, name: str, **arguments: Any) -> InstanceInfo:
        self._did("restore", name, **arguments)
        return instance(name)

    def stop(self, name: str, **arguments: Any) -> InstanceInfo:
        self._did("stop", name, **arguments)
        return instance(name, State.STOPPED)

    def start(self, name: str) -> InstanceInfo:
        self._did("start", name)
        return instance(name)

    def remove(self, name: str, **arguments: Any) -> None:
        self._did("remove", name, **arguments)

    def fork(self, source: str, names: Sequence[str], **arguments: Any) -> ForkReport:
        self.calls.append(("fork", {"source": source, "names": tuple(names), **arguments}))
        made = tuple(instance(name, State.STANDBY) for name in names or ("web-1",))
        return ForkReport(instances=made, source_pause_s=0.012, method=Method.REFLINK)

    def list(self) -> list[InstanceInfo]:
        forked = instance("db", State.FAILED, failure=Failure.VMM_LOST, lineage=(_ancestor("web"),))
        return [instance("web"), forked]

    def get(self, name: str) -> InstanceInfo:
        self._did("get", name)
        return instance(name, snapshot=snapshot("s1", "golden"))

    def du(self) -> Sequence[DiskUse]:
        return [DiskUse(name="web", kind="instance", allocated_bytes=1536, exclusive_bytes=None, apparent_bytes=2048)]

    def snapshots(self) -> Sequence[SnapshotInfo]:
        return [snapshot("s1", "golden")]

    def snapshot_create(self, name: str, called: str | None) -> SnapshotInfo:
        self._did("snapshot_create", name, called=called)
        return snapshot("s1", called or "web-1")

    def snapshot_get(self, name: str) -> SnapshotInfo:
        self.calls.append(("snapshot_get", {"name": name}))
        return snapshot("s1", name)

    def snapshot_remove(self, name: str) -> None:
        self.calls.append(("snapshot_remove", {"name": name}))

    def image_build(self, name: str) -> Image:
        self.calls.append(("image_build", {"name": name}))
        return IMAGE

    def image_list(self) -> Sequence[tuple[Image, tuple[str, ...]]]:
        return [(IMAGE, ("micro",))]

    def image_remove(self, name: str) -> None:
        self.calls.append(("image_remove", {"name": name}))

    def doctor(self) -> Sequence[Capability]:
        return [
            Capability(name="qemu", available=True, why="7.2.22", meaning="runs guests"),
            Capability(
                name="kvm", available=False, why="no vmx or svm", meaning="TCG it is", mend="use other hardware"
            ),
        ]

    def logs(self, name: str) -> dict[str, Path]:
        self._did("logs", name)
        return {"console": self.log_path, "vmm": self.log_path.with_suffix(".vmm")}


def _ancestor(name: str) -> Ancestor:
    return Ancestor(instance_id=f"id-{name}", name=name, snapshot_id=None)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    fake = FakeHost()

    def make_host(_home: Path | None, _say: Callable[[str], None]) -> FakeHost:
        return fake

    monkeypatch.setattr(context, "make_host", make_host)
    return fake


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
    assert ESCAPE not in out


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
        ("restore", {"name": "web", "snapshot": "golden", "discard_memory": True, "discard_disk": True})
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


@pytest.mark.parametrize("argv", [["rm"], ["rm", "--all", "web"]])
def test_rm_wants_names_or_all(host: FakeHost, argv: list[str]) -> None:
    assert run(argv) == 2
    assert host.calls == []


def test_fork_reports_pause_and_method(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fork", "web", "a", "b", "--start"]) == 0
    assert host.calls == [("fork", {"source": "web", "names": ("a", "b"), "count": None, "start": True})]
    out = capsys.readouterr().out
    assert out.splitlines()[:2] == ["a: standby (forked from web)", "b: standby (forked from web)"]
    assert "by reflink" in out
    assert "web was paused for 12 ms" in out


def test_fork_json_is_the_report(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fork", "web", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["source_pause_s"], report["method"]) == (0.012, "reflink")
    assert [made["name"] for made in report["instances"]] == ["web-1"]


@pytest.mark.parametrize("extra", [["-n", "0"], ["-n", "-2"], ["-n", "3", "a", "b"], ["-n", "many"]])
def test_fork_counts_are_checked(host: FakeHost, extra: list[str]) -> None:
    assert run(["fork", "web", *extra]) == 2
    assert host.calls == []


def test_ls_is_plain_columns_where_stdout_is_no_terminal(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ls"]) == 0
    out = capsys.readouterr().out
    assert ESCAPE not in out
    header, web, db = out.splitlines()
    assert header.split()[:2] == ["NAME", "STATE"]
    assert web.split()[:5] == ["web", "running", "256", "MiB", "1"]
    assert db.split()[:2] == ["db", "failed(vmm-lost)"]
    assert "web" in db


def test_ls_quiet_and_json(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ls", "-q"]) == 0
    assert capsys.readouterr().out == "web\ndb\n"
    assert run(["ls", "--json"]) == 0
    assert [info["name"] for info in json.loads(capsys.readouterr().out)] == ["web", "db"]


def test_show_json_has_the_stable_fields(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", "web", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    stable = "id name state hypervisor pid memory_mib lineage snapshot live_disk mapped_memory"
    assert set(stable.split()) <= set(found)
    assert {"id", "dir", "memory", "vmstate", "disk", "method", "parent"} <= set(found["snapshot"])


def test_show_is_one_field_a_line(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", "web"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "web"]
    assert any(line.startswith("snapshot names") and line.endswith("golden") for line in lines)


def test_du_says_what_it_cannot_know(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["du"]) == 0
    assert "unknown" in capsys.readouterr().out.splitlines()[1]
    assert run(["du", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["exclusive_bytes"] is None


def test_tree_draws_forks_below_their_source(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tree"]) == 0
    assert capsys.readouterr().out.splitlines() == ["web (running)", "├─ snapshot:golden", "└─ db (failed(vmm-lost))"]
    assert run(["tree", "--json"]) == 0
    (root,) = json.loads(capsys.readouterr().out)
    assert (root["kind"], root["name"], [child["name"] for child in root["children"]]) == (
        "instance",
        "web",
        ["golden", "db"],
    )


def test_snapshot_verbs(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["snapshot", "create", "web", "golden"]) == 0
    assert capsys.readouterr().out.startswith("golden: s1 (diff, 1.5 KiB written, ")
    assert run(["snapshot", "ls"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:4] == ["golden", "s1", "diff", "web"]
    assert run(["snapshot", "ls", "-q"]) == 0
    assert capsys.readouterr().out == "s1\n"
    assert run(["snapshot", "show", "golden", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["names"] == ["golden"]
    host.last_note = "the name is gone; the files stay"
    assert run(["snapshot", "rm", "golden"]) == 0
    assert capsys.readouterr().out == "golden: the name is gone; the files stay\n"


def test_image_verbs(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["image", "build"]) == 0
    assert capsys.readouterr().out.startswith("micro: abc123 (kernel 6.1.0, 20 MiB, ")
    assert run(["image", "ls", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["tags"] == ["micro"]
    assert run(["image", "ls"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["micro", "abc123"]
    assert run(["image", "rm", "micro", "old"]) == 0
    assert host.calls[-2:] == [("image_remove", {"name": "micro"}), ("image_remove", {"name": "old"})]


def test_doctor_says_what_mends(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["yes", "qemu", "7.2.22"]
    assert "no   kvm   no vmx or svm" in out
    assert "Mend: use other hardware" in out
    assert run(["doctor", "--json"]) == 0
    assert [entry["available"] for entry in json.loads(capsys.readouterr().out)] == [True, False]


def test_logs_prints_the_file_as_it_is(
    host: FakeHost, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    host.log_path = tmp_path / "console.log"
    host.log_path.write_bytes(b"boot\xff\r\n")
    assert run(["logs", "web"]) == 0
    assert capsysbinary.readouterr().out == b"boot\xff\r\n"
    assert run(["logs", "web", "--json"]) == 0
    assert json.loads(capsysbinary.readouterr().out)["console"] == str(host.log_path)
    assert run(["logs", "web", "--vmm"]) == 3  # not written yet
    assert run(["logs", "web", "-f", "--json"]) == 2


def test_logs_follows_a_log_that_grows_and_one_that_starts_anew(
    host: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.log_path = tmp_path / "console.log"
    host.log_path.write_bytes(b"first boot\n")
    seen: list[bytes] = []

    def shown(data: bytes) -> None:
        seen.append(data)
        if len(seen) == 1:
            with host.log_path.open("ab") as stream:
                stream.write(b"more\n")
        elif len(seen) == 2:
            host.log_path.write_bytes(b"anew\n")
        else:
            raise KeyboardInterrupt

    monkeypatch.setattr("ramet.cli.output.raw", shown)
    assert run(["logs", "web", "-f"]) == 130
    assert seen == [b"first boot\n", b"more\n", b"anew\n"]


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
