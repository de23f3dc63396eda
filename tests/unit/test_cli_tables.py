"""Tables: for programs a line stays a line, on a terminal they fit it."""

from __future__ import annotations

import pytest

from ramet.cli import output

ROWS = [["NAME", "STATE", "ABOUT"], ["web", "running", "word " * 30], ["a-long-name" * 3, "failed(vmm-lost)", "x"]]
RIGHT = [False, False, True]


def test_for_programs_a_line_stays_a_line() -> None:
    header, web, _ = output.columns(ROWS, right=RIGHT)
    assert header.split() == ROWS[0]
    assert web.endswith(" " + ROWS[1][2].rstrip())
    assert "\x1b" not in web


@pytest.mark.parametrize("width", [60, 100])
def test_on_a_terminal_all_cells_are_there_and_the_lines_fit(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    lines = output.columns(ROWS, right=RIGHT, width=width)
    assert max(map(len, lines)) <= width
    assert " ".join(lines).split().count("word") == 30
    assert len(lines) > len(ROWS)


def test_states_have_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    rows = [["NAME", "STATE"], ["web", "running"], ["db", "failed(vmm-lost)"]]
    header, web, _ = output.columns(rows, right=[False, True], width=80)
    assert header.split() == ["NAME", "STATE"]
    assert web == f"web   {' ' * 9}\x1b[32mrunning\x1b[0m"
