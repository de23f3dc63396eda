"""The verbs that only look, against a Host that records what it is asked: tables, lines for people, JSON for programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ramet.cli.main import run
from ramet.model import Capability
from tests.unit.fake_host import FakeHost, install

ESCAPE = "\x1b"


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    return install(monkeypatch)


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


def test_snapshot_check_says_of_which_instance_and_what_to_do(
    host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["snapshot", "check"]) == 1
    header, whole, lost, told, mend = capsys.readouterr().out.splitlines()
    assert header.split() == ["NAME", "ID", "OF", "VERDICT", "READ", "TIME"]
    assert whole.split()[:4] == ["-", "s1", "web", "whole"]
    assert lost.split()[:4] == ["-", "s2", "-", "DAMAGED"]
    assert (told, mend) == ("s2: manifest.json: It is damaged.", "  Remove it: ramet rm db")
    assert run(["snapshot", "check", "--json"]) == 1
    assert [one["instance_name"] for one in json.loads(capsys.readouterr().out)] == ["web", None]


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


def test_doctor_fits_the_terminal(
    host: FakeHost, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    long = Capability(name="kvm", available=False, why="why " * 40, meaning="meaning " * 40, mend="mend " * 40)
    monkeypatch.setattr(host, "doctor", lambda: [long])
    assert run(["doctor"]) == 0
    assert "why " * 39 in capsys.readouterr().out, "for programs a line stays a line"
    monkeypatch.setattr("ramet.cli.output.on_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    assert run(["doctor"]) == 0
    out = capsys.readouterr().out
    assert [out.count(word) for word in ("why", "meaning", "mend")] == [40, 40, 40]
    assert max(map(len, out.splitlines())) <= 60
    assert {line[:10] for line in out.splitlines()[1:]} == {" " * 10}


def test_doctor_says_whether_the_store_is_whole(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--store"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "instance 1: It is 0755.",
        "  --repair: Its mode is set.",
        "instances 2, snapshots 1, VMMs 0: 1 problem left",
    ]
    assert run(["doctor", "--store", "--repair"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "  mended: Its mode is set.",
        "instances 2, snapshots 1, VMMs 0: whole, as far as it was read (ramet snapshot check reads the rest)",
    ]
    host.strange = 2
    assert run(["doctor", "--store", "--repair"]) == 1
    out = capsys.readouterr().out
    assert "/store/tmp/x: It is not ours.\n  Move it elsewhere.\n" in out
    assert out.endswith("2 problems left\n")
    assert run(["doctor", "--store", "--json"]) == 1
    assert [one["mended"] for one in json.loads(capsys.readouterr().out)["problems"]] == [False, False, False]
    assert run(["doctor", "--repair"]) == 2
    assert "ramet doctor --store --repair" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    ("words", "listed", "said"),
    [
        (["ls"], "list", "No instances. `ramet create NAME` makes one.\n"),
        (["snapshot", "ls"], "snapshots", "No snapshots. `ramet standby INSTANCE` takes one, and so does"),
        (["snapshot", "check"], "snapshot_check", "No snapshots. "),
        (["image", "ls"], "image_list", "No images. `ramet image build` makes one.\n"),
    ],
)
def test_a_list_of_nothing_says_how_something_is_made(
    monkeypatch: pytest.MonkeyPatch,
    host: FakeHost,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    listed: str,
    said: str,
) -> None:
    """To a person; what reads the table finds its header, and no complaint."""
    monkeypatch.setattr(host, listed, lambda *_: [])
    assert run(words) == 0
    captured = capsys.readouterr()
    assert (len(captured.out.splitlines()), captured.err) == (1, "")
    monkeypatch.setattr("ramet.cli.output.on_terminal", lambda: True)
    assert run(words) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(said)


def test_the_tree_of_no_instances_says_so(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(host, "list", list)
    monkeypatch.setattr(host, "snapshots", list)
    assert run(["tree"]) == 0
    assert capsys.readouterr() == ("", "No instances. `ramet create NAME` makes one.\n")
    assert run(["tree", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
