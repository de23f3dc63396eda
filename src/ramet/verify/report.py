"""The report: for people a table, for machines JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import click

from ramet.verify.checks import CheckResult, Verdict, overall
from ramet.verify.documents import (
    CheckDocument,
    FactDocument,
    InstanceDocument,
    MatrixDocument,
    MemoryMapDocument,
    ReportDocument,
    SabotageDocument,
    ScenarioDocument,
    StepDocument,
    encoded,
)
from ramet.verify.survey import MemoryMap, Step

COLOURS = {Verdict.PASS: "green", Verdict.FAIL: "red", Verdict.INCONCLUSIVE: "yellow"}
DEFAULT_WIDTH = 110
INDENT = 15
ABOUT_INDENT = 13


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

    @property
    def caught(self) -> bool:
        return set(self.must_fail) <= set(self.failed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """Which sabotage was caught by which checks."""

    host: dict[str, str]
    rows: tuple[MatrixRow, ...]
    seconds: float

    @property
    def missed(self) -> tuple[str, ...]:
        return tuple(row.sabotage for row in self.rows if not row.caught and row.not_applicable is None)

    @property
    def exit_status(self) -> int:
        """0 if every sabotage that can be committed here was caught by the checks that name it."""
        return 1 if self.missed else 0


# -- JSON ---------------------------------------------------------------------------------------------------------


def document(report: Report | Matrix) -> ReportDocument | MatrixDocument:
    """A report, or a matrix, as it is published."""
    return _report_document(report) if isinstance(report, Report) else _matrix_document(report)


def encode(report: Report | Matrix) -> bytes:
    """A report, or a matrix, as indented JSON."""
    return encoded(document(report))


def _report_document(report: Report) -> ReportDocument:
    return ReportDocument(
        verdict=report.verdict.value,
        exit_status=report.exit_status,
        sabotage=report.sabotage,
        seconds=round(report.seconds, 3),
        host=report.host,
        checks=tuple(_check(result) for result in report.results),
        scenarios=tuple(
            ScenarioDocument(
                name=run.name,
                summary=run.summary,
                cut_short=run.cut_short,
                left_behind=run.left_behind,
                steps=_steps(run.steps),
            )
            for run in report.scenarios
        ),
    )


def _check(result: CheckResult) -> CheckDocument:
    return CheckDocument(
        id=f"{result.scenario}.{result.claim.id}",
        title=result.claim.title,
        verdict=result.verdict.value,
        evidence=tuple(FactDocument(at=fact.at, found=fact.found, agrees=fact.agrees) for fact in result.facts),
        scenario=result.scenario,
        strength=result.strength.value,
        required=result.required,
        reason=result.reason,
        claim=result.claim.claim,
        fails_if=result.claim.fails_if,
        hazards=result.claim.hazards,
    )


def _steps(steps: Sequence[Step]) -> tuple[StepDocument, ...]:
    """A memory map is told once, and again when it has changed."""
    told: dict[str, MemoryMap] = {}
    documents = []
    for step in steps:
        seen = step.survey
        changed = [one for one in seen.maps if told.get(one.role) != one] if seen else []
        told |= {one.role: one for one in changed}
        documents.append(
            StepDocument(
                step=step.text,
                seconds=round(step.seconds, 3),
                unseen=step.unseen,
                instances=tuple(
                    InstanceDocument(role=role, state=state, parent=seen.parents.get(role))
                    for role, state in seen.states.items()
                )
                if seen
                else (),
                disk_bytes=seen.disk_bytes if seen else None,
                extents=seen.extents if seen else None,
                memory_maps=tuple(
                    MemoryMapDocument(
                        role=one.role, bytes=one.size_bytes, extents=one.extents, own=one.own, shared=one.shared
                    )
                    for one in changed
                ),
            )
        )
    return tuple(documents)


def _matrix_document(matrix: Matrix) -> MatrixDocument:
    return MatrixDocument(
        all_caught=not matrix.missed,
        exit_status=matrix.exit_status,
        seconds=round(matrix.seconds, 3),
        host=matrix.host,
        sabotages=tuple(
            SabotageDocument(
                name=row.sabotage,
                summary=row.summary,
                must_fail=row.must_fail,
                failed=row.failed,
                caught=row.caught,
                not_applicable=row.not_applicable,
            )
            for row in matrix.rows
        ),
    )


# -- for people ---------------------------------------------------------------------------------------------------


def render(report: Report | Matrix, *, width: int | None = None, color: bool = False) -> str:
    """A report, or a matrix, as text."""
    columns = width or DEFAULT_WIDTH
    return (
        _render_report(report, columns, color) if isinstance(report, Report) else _render_matrix(report, columns, color)
    )


def _render_report(report: Report, columns: int, color: bool) -> str:
    """Per scenario each check with its verdict and one line of evidence; the total at the end."""
    lines: list[str] = []
    for run in report.scenarios:
        lines += [*_wrapped(f"{run.name}: {run.summary}", columns, 0), ""]
        for result in run.results:
            lines += _check_lines(result, columns, color)
        if run.cut_short:
            lines += ["", *_wrapped(f"It was cut short: {run.cut_short}", columns, 2)]
        lines += [f"  Could not be removed: {what}" for what in run.left_behind]
        lines.append("")
    about = {**report.host, **({"sabotage": report.sabotage} if report.sabotage else {})}
    for key, value in about.items():
        first, *rest = _wrapped(value, columns, ABOUT_INDENT)
        lines += [f"{key:<{ABOUT_INDENT}}{first.strip()}", *rest]
    lines += ["", _total(report, color)]
    return "\n".join(lines)


def _check_lines(result: CheckResult, columns: int, color: bool) -> list[str]:
    word = _painted(result.verdict, color, pad=len(Verdict.INCONCLUSIVE))
    mark = f" [{result.strength.value}]" if result.verdict is Verdict.PASS else ""
    lines = [f"{word}  {result.claim.title}{mark}"]
    if result.verdict is not Verdict.PASS:
        lines += _wrapped(result.reason or "", columns, INDENT)
        lines += _wrapped(f"Claim: {result.claim.claim}", columns, INDENT)
        if not result.required:
            lines += _wrapped("Not required on this host.", columns, INDENT)
        return lines
    times = f" (looked {len(result.facts)} times)" if len(result.facts) > 1 else ""
    return lines + _wrapped(result.facts[0].found + times, columns, INDENT)


def _total(report: Report, color: bool) -> str:
    counts = {verdict: sum(result.verdict is verdict for result in report.results) for verdict in Verdict}
    return (
        f"{_painted(report.verdict, color)}: {counts[Verdict.PASS]} passed, {counts[Verdict.FAIL]} failed, "
        f"{counts[Verdict.INCONCLUSIVE]} inconclusive, in {report.seconds:.1f} s"
    )


def _render_matrix(matrix: Matrix, columns: int, color: bool) -> str:
    """Which sabotage was caught by which checks."""
    lines = []
    for row in matrix.rows:
        if row.not_applicable is not None:
            word, tint = "not here", "yellow"
        else:
            word, tint = ("caught", "green") if row.caught else ("MISSED", "red")
        painted = click.style(word.ljust(8), fg=tint) if color else word.ljust(8)
        lines.append(f"{painted}  {row.sabotage}: {row.summary}")
        told = row.not_applicable or f"failed: {', '.join(row.failed) or 'nothing'}"
        if not row.caught and row.not_applicable is None:
            told += f"; must fail: {', '.join(row.must_fail)}"
        lines += _wrapped(told, columns, 10)
    here = [row for row in matrix.rows if row.not_applicable is None]
    lines += ["", f"{sum(row.caught for row in here)} of {len(here)} caught, in {matrix.seconds:.1f} s"]
    return "\n".join(lines)


def _painted(verdict: Verdict, color: bool, *, pad: int = 0) -> str:
    text = verdict.value.ljust(pad)
    return click.style(text, fg=COLOURS[verdict], bold=True) if color else text


def _wrapped(text: str, columns: int, indent: int) -> list[str]:
    lead = " " * indent
    width = max(columns, indent + 30)
    return textwrap.wrap(text, width, initial_indent=lead, subsequent_indent=lead, break_on_hyphens=False)
