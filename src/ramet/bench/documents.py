"""What ``ramet bench --json`` prints, as types: the published schema (docs/schemas/) is made from them.

A field may be added at any time; one that goes, or changes its meaning, takes another ``schema_version`` with it.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from ramet.bench.results import Figure, HostFacts, Outcome, Peer, Report, Row
from ramet.bench.samples import summarize

SCHEMA_VERSION = 1

Seconds = Annotated[float, Meta(ge=0)]
RoleWord = Annotated[
    Literal["ramet", "floor", "peer"],
    Meta(
        description="Ramet; the raw mechanism, which is the least that it takes; or another program that does as much."
    ),
]


class RowDocument(Struct, frozen=True, kw_only=True):
    """All samples of one thing, in seconds, bytes or as a count. ``id`` is the same on every host, within its figure; ``part``:
    it is a part of the row before; ``ratio`` is that of the medians, to the row ``against``, of the same figure and run.
    """

    id: str
    label: str
    part: bool
    role: RoleWord
    unit: Literal["s", "B", "count"]
    median: float
    min: float
    max: float
    count: int
    samples: tuple[float, ...]
    against: str | None
    ratio: float | None


class TargetDocument(Struct, frozen=True, kw_only=True):
    """A promised figure, at most or at least ``limit``, and what was measured."""

    text: str
    limit: float
    measured: float
    at_most: bool
    met: bool


class CurveDocument(Struct, frozen=True, kw_only=True):
    """One line of a plot, as (x, y)."""

    label: str
    role: RoleWord
    points: tuple[tuple[float, float], ...]


class PlotDocument(Struct, frozen=True, kw_only=True):
    """Curves over one another; ``x`` and ``y`` are what the axes are in, nothing for a count."""

    title: str
    x: str
    y: str
    curves: tuple[CurveDocument, ...]


class FigureDocument(Struct, frozen=True, kw_only=True):
    """One figure; ``setting`` says of which guest, by which copy method and memory policy, where it has these."""

    id: str
    title: str
    setting: str
    rows: tuple[RowDocument, ...]
    targets: tuple[TargetDocument, ...]
    plots: tuple[PlotDocument, ...]
    notes: tuple[str, ...]


class BenchmarkDocument(Struct, frozen=True, kw_only=True):
    """One benchmark: its figures, or why it was ``skipped``."""

    name: str
    summary: str
    seconds: Seconds
    skipped: str | None
    figures: tuple[FigureDocument, ...]


class BenchDocument(Struct, frozen=True, kw_only=True, tag_field="kind", tag="bench"):
    """A run of `ramet bench`: ``plan`` is how much was measured."""

    schema_version: int = SCHEMA_VERSION
    plan: Literal["quick", "full"]
    seconds: Seconds
    host: HostFacts
    peers: tuple[Peer, ...]
    benchmarks: tuple[BenchmarkDocument, ...]


def schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of what is printed."""
    made = msgspec.json.schema(BenchDocument)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Figures of Ramet", **made}


def document(report: Report) -> BenchDocument:
    """A report as it is published."""
    return BenchDocument(
        plan="full" if report.plan == "full" else "quick",
        seconds=round(report.seconds, 3),
        host=report.host,
        peers=tuple(report.peers),
        benchmarks=tuple(_benchmark(outcome) for outcome in report.outcomes),
    )


def encode(found: BenchDocument) -> bytes:
    """As indented JSON, with a newline at its end."""
    return msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n"


def _benchmark(outcome: Outcome) -> BenchmarkDocument:
    return BenchmarkDocument(
        name=outcome.name,
        summary=outcome.summary,
        seconds=round(outcome.seconds, 3),
        skipped=outcome.skipped,
        figures=tuple(_figure(figure) for figure in outcome.figures),
    )


def _figure(figure: Figure) -> FigureDocument:
    medians = {row.id: summarize(row.values).median for row in figure.rows}
    return FigureDocument(
        id=figure.id,
        title=figure.title,
        setting=figure.setting,
        rows=tuple(_row(row, medians) for row in figure.rows),
        targets=tuple(TargetDocument(**asdict(target), met=target.met) for target in figure.targets),
        plots=tuple(
            PlotDocument(
                title=plot.title,
                x=plot.x,
                y=plot.y,
                curves=tuple(
                    CurveDocument(label=curve.label, role=curve.role.value, points=tuple(curve.points))
                    for curve in plot.curves
                ),
            )
            for plot in figure.plots
        ),
        notes=tuple(figure.notes),
    )


def _row(row: Row, medians: dict[str, float]) -> RowDocument:
    found = summarize(row.values)
    other = medians[row.against] if row.against is not None else 0
    return RowDocument(
        id=row.id,
        label=row.label,
        part=row.part,
        role=row.role.value,
        unit=row.unit.value,
        median=found.median,
        min=found.low,
        max=found.high,
        count=found.count,
        samples=tuple(row.values),
        against=row.against,
        ratio=round(found.median / other, 4) if other else None,
    )
