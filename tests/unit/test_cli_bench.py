"""`ramet bench` on the command line, with a run that is only noted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import ramet.bench
from ramet.cli.main import run
from ramet.errors import UnsupportedError
from ramet.model import Hypervisor, MemoryPolicy
from tests.unit.bench.made_up import report


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, object]]:
    """The runs that were asked for."""
    asked: list[dict[str, object]] = []

    def measured(home: Path, **options: object) -> object:
        asked.append({"home": home, **options})
        return report()

    monkeypatch.setattr(ramet.bench, "run", measured)
    monkeypatch.setenv("RAMET_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return asked


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--only", "nope"], "There is no benchmark 'nope'."),
        (["--only", "frok"], "Did you mean 'fork'? `ramet bench --list` lists them."),
        (["--list", "--only", "nope"], "There is no benchmark 'nope'."),
        (["--memory", "much"], "'much' is not a size for --memory."),
        (["--memory", "128M"], "have nothing to measure"),
        (["--memory", "1000T"], "more than this host has"),
        (["--hypervisor", "vmware"], "'vmware' is not one of"),
        (["--output", "nowhere/figures"], "There is no directory"),
        (["--output", "file"], "file is not a directory."),
        (["--output", ""], "--output needs the name of a directory."),
        (["--output", "-"], "--json prints the JSON"),
        (["--output", "/proc/figures"], "/proc/figures cannot be made"),
        (["--output", "taken"], "report.json is a directory."),
    ],
)
def test_bad_input_is_refused_before_anything_is_run(
    runs: list[dict[str, object]],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    told: str,
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "taken" / "report.json").mkdir(parents=True)
    assert run(["bench", *arguments]) == 2
    assert told in capsys.readouterr().err
    assert runs == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken"]


def test_it_asks_for_a_quick_run_of_everything_by_default(runs: list[dict[str, object]], tmp_path: Path) -> None:
    assert run(["bench"]) == 0
    (asked,) = runs
    assert asked.pop("on_progress")
    assert asked == {
        "home": tmp_path / "home",
        "hypervisor": None,
        "memory_mib": 256,
        "memory_policy": MemoryPolicy.CLONE,
        "only": (),
        "full": False,
        "against": False,
    }


def test_it_hands_on_what_was_asked_for(runs: list[dict[str, object]]) -> None:
    options = ["--full", "--against", "--memory", "1G", "--hypervisor", "firecracker", "--memory-policy", "share"]
    assert run(["bench", *options, "--only", "sizes", "--only", "fork"]) == 0
    (asked,) = runs
    assert (asked["full"], asked["against"], asked["memory_mib"]) == (True, True, 1024)
    assert (asked["hypervisor"], asked["memory_policy"]) == (Hypervisor.FIRECRACKER, MemoryPolicy.SHARE)
    assert asked["only"] == ("sizes", "fork")


def test_both_reports_are_written_and_the_directory_is_made(
    runs: list[dict[str, object]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(["bench", "--output", "figures", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["kind"] == "bench"
    assert json.loads((tmp_path / "figures" / "report.json").read_text()) == printed
    assert (tmp_path / "figures" / "report.html").read_text().startswith("<!doctype html>")


def test_an_old_report_stays_until_there_is_a_new_one(
    runs: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(_home: Path, **_options: object) -> object:
        raise UnsupportedError("No hypervisor works here.", capability="qemu", why="")

    monkeypatch.setattr(ramet.bench, "run", fails)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "report.json").write_text("old")
    assert run(["bench", "--output", "figures"]) == 7
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["report.json"]
    assert (tmp_path / "figures" / "report.json").read_text() == "old"


def test_figures_are_told_even_if_a_file_cannot_be_written_in_the_end(
    runs: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def meanwhile(_home: Path, **_options: object) -> object:
        (tmp_path / "figures" / "report.json").mkdir(parents=True)
        return report()

    monkeypatch.setattr(ramet.bench, "run", meanwhile)
    assert run(["bench", "--output", "figures"]) == 8
    told = capsys.readouterr()
    assert "1 of 2 targets met" in told.out
    assert "Could not write figures/report.json" in told.err
    assert (tmp_path / "figures" / "report.html").exists()


def test_the_benchmarks_are_listed(runs: list[dict[str, object]], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "--list"]) == 0
    assert "scatter" in capsys.readouterr().out
    assert run(["bench", "--list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["benchmarks"]
    assert set(listed) == {
        "save",
        "fork",
        "pool",
        "pause",
        "restore",
        "many",
        "idle",
        "share",
        "sleep",
        "writes",
        "scatter",
        "sizes",
    }
    assert runs == []


def test_the_schema_is_printed(runs: list[dict[str, object]], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "--schema"]) == 0
    assert "BenchDocument" in json.loads(capsys.readouterr().out)["$defs"]
    assert runs == []
