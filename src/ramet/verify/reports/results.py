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
        """1 for a FAIL, 2 if it did not get to its end without one, else 0."""
        if self.verdict is Verdict.FAIL:
            return 1
        return 2 if self.cut_short else 0

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
        return tuple(row.sabotage for row in self.rows if not row.caught and row.not_applicable is None)

    @property
    def exit_status(self) -> int:
        """0 if every sabotage that can be committed here was caught by the checks that name it."""
        return 1 if self.missed else 0
