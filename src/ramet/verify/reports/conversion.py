"""Results as the documents that are published."""

from __future__ import annotations

from collections.abc import Sequence

from ramet.verify.checks import CheckResult
from ramet.verify.entries import Kind
from ramet.verify.guard import Outcome
from ramet.verify.reports.documents import (
    ChangeDocument,
    CheckDocument,
    CommandDocument,
    FactDocument,
    GuardDocument,
    InstanceDocument,
    MatrixDocument,
    MemoryMapDocument,
    ReportDocument,
    SabotageDocument,
    ScenarioDocument,
    StepDocument,
    encoded,
)
from ramet.verify.reports.results import Matrix, Report
from ramet.verify.survey import MemoryMap, Step


def document(report: Report | Matrix) -> ReportDocument | MatrixDocument:
    """A report, or a matrix, as it is published."""
    return _report_document(report) if isinstance(report, Report) else _matrix_document(report)


def encode(found: Report | Matrix | Outcome) -> bytes:
    """A report, a matrix, or what a guard came to, as indented JSON."""
    return encoded(_guard_document(found) if isinstance(found, Outcome) else document(found))


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
        all_caught=all(row.caught for row in matrix.rows if row.not_applicable is None),
        exit_status=matrix.exit_status,
        seconds=round(matrix.seconds, 3),
        host=matrix.host,
        undecided=matrix.undecided,
        sabotages=tuple(
            SabotageDocument(
                name=row.sabotage,
                summary=row.summary,
                must_fail=row.must_fail,
                failed=row.failed,
                caught=row.caught,
                cut_short=row.cut_short,
                not_applicable=row.not_applicable,
            )
            for row in matrix.rows
        ),
    )


def _guard_document(outcome: Outcome) -> GuardDocument:
    report, status = outcome.report, outcome.status
    return GuardDocument(
        verdict=outcome.verdict.value,
        exit_status=outcome.exit_status,
        reason=outcome.reason,
        command=CommandDocument(
            argv=outcome.command,
            status=status if status >= 0 else None,
            signal=-status if status < 0 else None,
            still_running=outcome.still_running,
        ),
        paths=tuple(str(path) for path in report.paths),
        files=report.files,
        directories=report.kinds[Kind.DIRECTORY],
        symlinks=report.kinds[Kind.SYMLINK],
        not_read=tuple(str(path) for path in report.not_read),
        bytes=report.total_bytes,
        seconds=round(report.seconds, 3),
        writers_unseen=report.writers_unseen,
        changes=tuple(
            ChangeDocument(
                path=str(change.path),
                what=change.kind.value,
                harmless=change.harmless,
                is_new=change.is_new,
                is_gone=change.is_gone,
                differences=change.differences,
                pages=tuple((pages.start, pages.stop) for pages in change.pages),
                writers=change.writers,
                held_by=change.held_by,
            )
            for change in report.changes
        ),
    )
