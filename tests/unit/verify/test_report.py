"""The report for people and for machines, from results that were made up."""

from __future__ import annotations

import json
from xml.etree import ElementTree as Xml

from ramet.verify.checks import Ledger
from ramet.verify.reports import junit
from ramet.verify.reports.conversion import encode
from ramet.verify.reports.results import Matrix, MatrixRow, Report, ScenarioRun
from ramet.verify.reports.text import render
from ramet.verify.survey import Step


def report(
    *, fail: bool = False, cut_short: str | None = None, sabotage: str | None = None, must_fail: tuple[str, ...] = ()
) -> Report:
    ledger = Ledger("base", ["fork-wakes", "fork-disk-usage", "source-memory-unchanged"])
    ledger.look("fork-wakes", "fork restored", [], found="its agent answered", enforced=True)
    ledger.undecided("fork-disk-usage", "ext4 has no reflinks", required=False)
    ledger.look("source-memory-unchanged", "fork", ["SHA-256 a became b"] if fail else [], found="inode 7")
    if cut_short:
        ledger.cut_short(cut_short)
    run = ScenarioRun(
        name="base",
        summary="One fork's whole life.",
        results=ledger.results(),
        steps=(Step(text="booting the source", seconds=2.5),),
        cut_short=cut_short,
        left_behind=(),
    )
    return Report(host={"kernel": "6.1"}, scenarios=(run,), sabotage=sabotage, seconds=12.34, must_fail=must_fail)


def test_exit_statuses() -> None:
    assert report().exit_status == 0
    assert report(fail=True).exit_status == 1
    assert report(cut_short="the VMM died").exit_status == 2
    assert report(fail=True, cut_short="the VMM died").exit_status == 1


def test_json_has_the_stable_surface() -> None:
    value = json.loads(encode(report(fail=True)))
    assert value["verdict"] == "FAIL"
    assert [check["id"] for check in value["checks"]] == [
        "base.fork-wakes",
        "base.fork-disk-usage",
        "base.source-memory-unchanged",
    ]
    assert [check["verdict"] for check in value["checks"]] == ["PASS", "INCONCLUSIVE", "FAIL"]
    assert value["checks"][2]["evidence"] == [{"at": "fork", "found": "SHA-256 a became b", "agrees": False}]
    assert value["host"] == {"kernel": "6.1"}


def test_the_text_says_what_failed_and_fits() -> None:
    must_fail = ("source-memory-unchanged", "source-restores")
    text = render(report(fail=True, sabotage="in-place-diff", must_fail=must_fail), width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "\nmarks        [enforced]: the kernel would refuse the opposite. [held]:" in text
    assert "fork: SHA-256 a became b" in text
    assert "\nFAIL: 1 passed, 1 failed, 1 inconclusive, in 12.3 s\n" in text
    assert text.splitlines()[-1] == "The sabotage in-place-diff was NOT caught by source-restores."
    assert "sabotage     in-place-diff" in text
    assert "\x1b" not in text
    assert "\x1b" in render(report(), color=True)


def test_the_matrix_tells_caught_from_missed_and_from_not_applicable() -> None:
    rows = (
        MatrixRow(sabotage="a", summary="breaks a", must_fail=("x",), failed=("x", "y")),
        MatrixRow(sabotage="b", summary="breaks b", must_fail=("x", "z"), failed=("x",)),
        MatrixRow(sabotage="c", summary="breaks c", must_fail=("x",), failed=(), not_applicable="no reflinks"),
    )
    matrix = Matrix(host={}, rows=rows, seconds=1.0)
    assert matrix.missed == ("b",)
    assert matrix.exit_status == 1
    assert Matrix(host={}, rows=(rows[0], rows[2]), seconds=1.0).exit_status == 0
    text = render(matrix)
    assert "MISSED" in text
    assert "must fail: x, z" in text
    assert "1 of 2 caught" in text
    assert json.loads(encode(matrix))["sabotages"][1]["caught"] is False


def test_a_sabotage_whose_run_was_cut_short_is_neither_caught_nor_missed() -> None:
    cut = MatrixRow(sabotage="d", summary="breaks d", must_fail=("x",), failed=(), cut_short="The guest said nothing.")
    caught = MatrixRow(sabotage="a", summary="breaks a", must_fail=("x",), failed=("x",), cut_short="It ended the VMM.")
    matrix = Matrix(host={}, rows=(caught, cut), seconds=1.0)
    assert (matrix.missed, matrix.unknown, matrix.exit_status) == ((), ("d",), 2)
    text = render(matrix)
    assert "MISSED" not in text
    assert "unknown, cut short twice: d" in text
    assert "The guest said nothing." in text


def test_the_run_of_one_sabotage_says_by_what_it_was_caught() -> None:
    caught = report(fail=True, sabotage="in-place-diff", must_fail=("source-memory-unchanged",))
    last = render(caught).splitlines()[-1]
    assert last == "The sabotage in-place-diff was caught, as it should be, by source-memory-unchanged."
    assert render(report()).splitlines()[-1].startswith("PASS: ")


def test_junit_has_a_case_for_each_check() -> None:
    failed = report(fail=True, cut_short="the VMM said \x1b[2J and died")
    root = Xml.fromstring(junit.encode(failed))
    (suite,) = root
    assert {name: suite.get(name) for name in ("name", "tests", "failures", "errors", "skipped")} == {
        "name": "base",
        "tests": "3",
        "failures": "1",
        "errors": "0",
        "skipped": "1",
    }
    cases = {case.get("name"): [child.tag for child in case] for case in suite.findall("testcase")}
    assert cases == {
        "fork-wakes": ["system-out"],
        "fork-disk-usage": ["skipped", "system-out"],
        "source-memory-unchanged": ["failure", "system-out"],
    }
    (failure,) = suite.iter("failure")
    assert "SHA-256 a became b" in str(failure.get("message"))
    assert suite.findtext("system-err") == "the VMM said \\x1b[2J and died"
    (prop,) = suite.iter("property")
    assert (prop.get("name"), prop.get("value")) == ("kernel", "6.1")


def test_a_check_that_was_not_looked_at_is_an_error_in_junit() -> None:
    """Not looked is not PASS, and a system that counts failures and errors must not take it for one."""
    ledger = Ledger("base", ["fork-wakes"])
    run = ScenarioRun(
        name="base", summary="", results=ledger.results(), steps=(), cut_short="early", left_behind=("a process",)
    )
    root = Xml.fromstring(junit.encode(Report(host={}, scenarios=(run,), sabotage=None, seconds=1)))
    assert root[0].get("errors") == "1"
    assert "a process" in str(root[0].findtext("system-err"))
