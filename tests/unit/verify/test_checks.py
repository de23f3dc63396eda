"""Verdicts: every way to PASS, and every way not to."""

from __future__ import annotations

import pytest

from ramet.verify.checks import CheckResult, Ledger, Strength, Verdict, overall
from ramet.verify.claims import CLAIMS
from ramet.verify.reports.results import Report, ScenarioRun

ONCE, CONTINUOUS = "fork-wakes", "source-memory-unchanged"


def result(ledger: Ledger, claim: str) -> CheckResult:
    return next(one for one in ledger.results() if one.claim.id == claim)


def test_a_look_that_agrees_passes() -> None:
    ledger = Ledger("base", [ONCE])
    ledger.look(ONCE, "here", [], found="all well")
    assert result(ledger, ONCE).verdict is Verdict.PASS
    assert result(ledger, ONCE).strength is Strength.HELD


def test_not_looked_is_not_pass() -> None:
    ledger = Ledger("base", [ONCE])
    assert result(ledger, ONCE).verdict is Verdict.INCONCLUSIVE
    assert overall(ledger.results()) is Verdict.INCONCLUSIVE


def test_one_look_that_disagrees_fails_whatever_the_others_say() -> None:
    ledger = Ledger("base", [CONTINUOUS])
    ledger.look(CONTINUOUS, "first", [], found="same")
    ledger.look(CONTINUOUS, "second", ["SHA-256 changed", "inode changed"], found="")
    ledger.look(CONTINUOUS, "third", [], found="same")
    found = result(ledger, CONTINUOUS)
    assert found.verdict is Verdict.FAIL
    assert found.reason == "second: SHA-256 changed; inode changed"
    assert [fact.agrees for fact in found.facts] == [True, False, True]


def test_a_scenario_that_was_cut_short_cannot_pass_a_continuous_check() -> None:
    ledger = Ledger("base", [ONCE, CONTINUOUS])
    ledger.look(ONCE, "here", [], found="")
    ledger.look(CONTINUOUS, "here", [], found="")
    ledger.cut_short("the VMM died")
    assert result(ledger, ONCE).verdict is Verdict.PASS
    assert result(ledger, CONTINUOUS).verdict is Verdict.INCONCLUSIVE
    assert (
        result(ledger, CONTINUOUS).reason == "not reached, or not to the end: the scenario was cut short (the VMM died)"
    )


def test_a_failure_stays_one_when_the_scenario_is_cut_short() -> None:
    ledger = Ledger("base", [CONTINUOUS])
    ledger.look(CONTINUOUS, "here", ["it changed"], found="")
    ledger.cut_short("it went no further")
    assert result(ledger, CONTINUOUS).verdict is Verdict.FAIL


def test_enforced_only_if_every_look_was() -> None:
    ledger = Ledger("base", [ONCE, CONTINUOUS])
    ledger.look(ONCE, "a", [], found="", enforced=True)
    ledger.look(CONTINUOUS, "a", [], found="", enforced=True)
    ledger.look(CONTINUOUS, "b", [], found="", enforced=False)
    ledger.look(CONTINUOUS, "c", [], found="", enforced=True)
    assert result(ledger, ONCE).strength is Strength.ENFORCED
    assert result(ledger, CONTINUOUS).strength is Strength.HELD


def test_what_is_not_required_does_not_make_the_whole_inconclusive() -> None:
    ledger = Ledger("base", [ONCE, "fork-disk-usage"])
    ledger.look(ONCE, "here", [], found="")
    ledger.undecided("fork-disk-usage", "ext4 has no reflinks", required=False)
    assert overall(ledger.results()) is Verdict.PASS
    ledger.undecided("fork-disk-usage", "FIEMAP failed", required=True)
    assert overall(ledger.results()) is Verdict.INCONCLUSIVE


def test_nothing_at_all_is_inconclusive() -> None:
    assert overall([]) is Verdict.INCONCLUSIVE


def test_where_nothing_could_be_looked_at_nothing_has_passed_required_or_not() -> None:
    ledger = Ledger("swapped", ["swapped-pages-are-kept"])
    ledger.undecided("swapped-pages-are-kept", "the host has no swap", required=False)
    assert overall(ledger.results()) is Verdict.INCONCLUSIVE
    report = Report(
        host={},
        scenarios=(
            ScenarioRun(name="swapped", summary="", results=ledger.results(), steps=(), cut_short=None, left_behind=()),
        ),
        sabotage=None,
        seconds=1.0,
    )
    assert report.exit_status == 2


def test_a_check_of_another_scenario_cannot_be_entered() -> None:
    with pytest.raises(KeyError):
        Ledger("base", [ONCE]).look(CONTINUOUS, "here", [], found="")


def test_every_claim_says_what_it_claims_and_how_it_fails() -> None:
    for claim in CLAIMS.values():
        assert claim.title
        assert claim.claim.endswith(".")
        assert claim.fails_if
