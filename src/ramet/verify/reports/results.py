"""What runs of the verifier came to."""

from __future__ import annotations

from dataclasses import dataclass

from ramet.verify.checks import CheckResult, Verdict, overall
from ramet.verify.survey import Step


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioRun:
    """One scenario after it was run."""

    name: str
    summary: str
    results: tuple[CheckResult, ...]
    steps: tuple[Step, ...]
    cut_short: str | None
    left_behind: tuple[str, ...]
    """What could not be removed at its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a run of the verifier found."""

    host: dict[str, str]
    scenarios: tuple[ScenarioRun, ...]
    sabotage: str | None
    seconds: float
    must_fail: tuple[str, ...] = ()
    """The checks that the sabotage must fail."""

    @property
    def results(self) -> tuple[CheckResult, ...]:
        return tuple(result for scenario in self.scenarios for result in scenario.results)

    @property
    def verdict(self) -> Verdict:
        return overall(self.results)

    @property
    def cut_short(self) -> str | None:
        return next((run.cut_short for run in self.scenarios if run.cut_short), None)

    @property
    def exit_status(self) -> int:
        """1 for a FAIL, 2 if it did not get to its end without one or nothing could be looked at, else 0."""
        if self.verdict is Verdict.FAIL:
            return 1
        has_passed = any(result.verdict is Verdict.PASS for result in self.results)
        return 2 if self.cut_short or not has_passed else 0

    def failed(self) -> tuple[str, ...]:
        """The checks that failed, by claim."""
        return tuple(result.claim.id for result in self.results if result.verdict is Verdict.FAIL)


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixRow:
    """One sabotage and what caught it."""

    sabotage: str
    summary: str
    must_fail: tuple[str, ...]
    failed: tuple[str, ...]
    not_applicable: str | None = None
    cut_short: str | None = None
    """Why the run did not get to its end; a sabotage that ends it, as a dead VMM does, is nothing unusual."""

    @property
    def caught(self) -> bool:
        return set(self.must_fail) <= set(self.failed)

    @property
    def missed(self) -> bool:
        """It was committed, and nothing noticed."""
        return not self.caught and self.not_applicable is None and self.cut_short is None

    @property
    def unknown(self) -> bool:
        """Its run did not get to where it would have been noticed."""
        return not self.caught and self.not_applicable is None and self.cut_short is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """Which sabotage was caught by which checks."""

    host: dict[str, str]
    rows: tuple[MatrixRow, ...]
    seconds: float
    undecided: tuple[str, ...] = ()
    """The required checks that the run which nobody sabotaged could not decide: their sabotages may have been missed for that."""

    @property
    def missed(self) -> tuple[str, ...]:
        return tuple(row.sabotage for row in self.rows if row.missed)

    @property
    def unknown(self) -> tuple[str, ...]:
        """Those of which nobody can say: their runs were cut short, twice."""
        return tuple(row.sabotage for row in self.rows if row.unknown)

    @property
    def exit_status(self) -> int:
        """0 if every sabotage that can be committed here was caught by the checks that name it, 1 if one was missed, 2 if of one
        nobody can say.
        """
        if self.missed:
            return 1
        return 2 if self.unknown else 0
