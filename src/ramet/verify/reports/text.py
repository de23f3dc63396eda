"""Results as tables for people."""

from __future__ import annotations

import textwrap

import click

from ramet.verify.checks import CheckResult, Verdict
from ramet.verify.reports.results import Matrix, Report

COLOURS = {Verdict.PASS: "green", Verdict.FAIL: "red", Verdict.INCONCLUSIVE: "yellow"}
DEFAULT_WIDTH = 110
INDENT = 15
MARKS = "[enforced]: the kernel would refuse the opposite. [held]: it was so, and only Ramet's own code made it so."
ABOUT_INDENT = 13


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
    about = {**report.host, **({"sabotage": report.sabotage} if report.sabotage else {}), "marks": MARKS}
    for key, value in about.items():
        first, *rest = _wrapped(value, columns, ABOUT_INDENT)
        lines += [f"{key:<{ABOUT_INDENT}}{first.strip()}", *rest]
    lines += ["", _total(report, color), *_wrapped(_of_the_sabotage(report), columns, 0)]
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


def _of_the_sabotage(report: Report) -> str:
    """Whether it was caught; nothing, where there was none."""
    if report.sabotage is None:
        return ""
    not_failed = [claim for claim in report.must_fail if claim not in report.failed()]
    if not_failed:
        return f"The sabotage {report.sabotage} was NOT caught by {', '.join(not_failed)}."
    return f"The sabotage {report.sabotage} was caught, as it should be, by {', '.join(report.must_fail)}."


def _render_matrix(matrix: Matrix, columns: int, color: bool) -> str:
    """Which sabotage was caught by which checks."""
    lines = []
    for row in matrix.rows:
        if row.not_applicable is not None:
            word, tint = "not here", "yellow"
        else:
            word, tint = (
                ("caught", "green") if row.caught else ("MISSED", "red") if row.missed else ("unknown", "yellow")
            )
        painted = click.style(word.ljust(8), fg=tint) if color else word.ljust(8)
        lines.append(f"{painted}  {row.sabotage}: {row.summary}")
        told = row.not_applicable or f"failed: {', '.join(row.failed) or 'nothing'}"
        if not row.caught and row.not_applicable is None:
            told += f"; must fail: {', '.join(row.must_fail)}"
            told += f"; it was cut short: {row.cut_short}" if row.cut_short else ""
        lines += _wrapped(told, columns, 10)
    lines += [f"undecided without sabotage: {what}" for what in matrix.undecided]
    here = [row for row in matrix.rows if row.not_applicable is None]
    lines += ["", f"{sum(row.caught for row in here)} of {len(here)} caught, in {matrix.seconds:.1f} s"]
    lines += [f"MISSED: {', '.join(matrix.missed)}"] if matrix.missed else []
    lines += [f"unknown, cut short twice: {', '.join(matrix.unknown)}"] if matrix.unknown else []
    return "\n".join(lines)


def _painted(verdict: Verdict, color: bool, *, pad: int = 0) -> str:
    text = verdict.value.ljust(pad)
    return click.style(text, fg=COLOURS[verdict], bold=True) if color else text


def _wrapped(text: str, columns: int, indent: int) -> list[str]:
    lead = " " * indent
    width = max(columns, indent + 30)
    return textwrap.wrap(text, width, initial_indent=lead, subsequent_indent=lead, break_on_hyphens=False)
