"""`ramet verify` on the command line, with a verifier that only notes whether it was run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import ramet.verify
from ramet.cli.main import run
from ramet.errors import HostError
from tests.unit.verify.test_page import matrix
from tests.unit.verify.test_report import report

COULD_NOT_RUN = 2


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, object]]:
    """The runs that were asked for; each fails one check."""
    asked: list[dict[str, object]] = []

    def run_scenarios(home: Path, **options: object) -> object:
        asked.append(options)
        return report(fail=True)

    def run_matrix(home: Path, **options: object) -> object:
        asked.append(options)
        return matrix()

    monkeypatch.setattr(ramet.verify, "run", run_scenarios)
    monkeypatch.setattr(ramet.verify, "run_all_sabotages", run_matrix)
    monkeypatch.setenv("RAMET_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return asked


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--scenario", "nope"], "There is no scenario 'nope'."),
        (["--sabotage", "nope"], "There is no sabotage 'nope'."),
        (["--list", "--scenario", "nope"], "There is no scenario 'nope'."),
        (["--list", "--sabotage", "nope"], "There is no sabotage 'nope'."),
        (["--scenario", "bas"], "Did you mean 'base'? `ramet verify --list` lists them."),
        (["--sabotage", "rebot"], "Did you mean 'reboot'?"),
        (["--sabotage", "all", "--scenario", "base"], "chooses the scenarios itself"),
        (["--sabotage", "all", "--junit", "x.xml"], "no form in JUnit"),
        (["--sabotage", "all", "--keep"], "keeps nothing"),
        (["--output", "nowhere/report.json"], "There is no directory"),
        (["--html", "nowhere/report.html"], "There is no directory"),
        (["--junit", "."], "is a directory"),
        (["--html", ""], "--html needs the name of a file."),
        (["--output", "-"], "--json prints the JSON"),
        (["--output", "r", "--html", "./r"], "--output and --html are the same file"),
        (["--html", "/proc/r.html"], "/proc/r.html cannot be written: No such file or directory."),
        (["--html", f"{'x' * 256}.html"], "File name too long"),
    ],
)
def test_bad_input_is_refused_before_anything_is_run(
    runs: list[dict[str, object]], capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert run(["verify", *arguments]) == COULD_NOT_RUN
    err = capsys.readouterr().err
    assert told in err
    assert max(map(len, err.splitlines())) < 400
    assert runs == []


def test_two_names_of_one_file_are_refused_whichever_link_they_take(
    runs: list[dict[str, object]], tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to("r")
    assert run(["verify", "--output", "link", "--junit", "r"]) == COULD_NOT_RUN
    assert runs == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link"]


def test_what_is_tried_before_the_run_leaves_no_trace(
    runs: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An old report stays until there is a new one; a pipe is not opened, which its reader would notice."""
    (tmp_path / "old").write_text("old")
    os.mkfifo(tmp_path / "pipe")
    seen: list[list[str]] = []

    def look(home: Path, **options: object) -> object:
        seen.append(sorted(path.name for path in tmp_path.iterdir()))
        seen.append([(tmp_path / "old").read_text()])
        raise HostError("enough")

    monkeypatch.setattr(ramet.verify, "run", look)
    assert run(["verify", "--output", "old", "--html", "new", "--junit", "pipe"]) == COULD_NOT_RUN
    assert seen == [["old", "pipe"], ["old"]]


def test_a_report_is_written_in_every_form_at_once(
    runs: list[dict[str, object]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(["verify", "--output", "a.json", "--html", "a.html", "--junit", "a.xml"]) == 1
    assert len(runs) == 1
    assert "FAIL: 1 passed, 1 failed, 1 inconclusive" in capsys.readouterr().out
    assert json.loads((tmp_path / "a.json").read_text())["verdict"] == "FAIL"
    assert (tmp_path / "a.html").read_text().startswith("<!doctype html>")
    assert (tmp_path / "a.xml").read_text().startswith("<?xml")


def test_the_matrix_has_a_page_too(
    runs: list[dict[str, object]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(["verify", "--sabotage", "all", "--html", "m.html"]) == 1
    assert "1 of 2 caught" in capsys.readouterr().out
    assert "--sabotage all" in (tmp_path / "m.html").read_text()


def test_a_report_whose_file_cannot_be_written_in_the_end_is_still_told(
    runs: list[dict[str, object]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def write(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write)
    assert run(["verify", "--html", "a.html"]) == COULD_NOT_RUN
    out, err = capsys.readouterr()
    assert "FAIL: 1 passed" in out
    assert "a.html" in err
    assert "o space left" in err
