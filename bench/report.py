"""What was measured, as aligned tables for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum

from bench.measure import summarize

MIB = 1024 * 1024


class Unit(StrEnum):
    """What the values of a row are in; people read them scaled."""

    SECONDS = "s"
    BYTES = "B"
    BYTES_PER_SECOND = "B/s"
    RATIO = "ratio"
    COUNT = "count"


SHOWN = {
    Unit.SECONDS: (1000.0, "ms"),
    Unit.BYTES: (1 / MIB, "MiB"),
    Unit.BYTES_PER_SECOND: (1 / MIB, "MiB/s"),
    Unit.RATIO: (1.0, ""),
    Unit.COUNT: (1.0, ""),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a table: all its samples, and the label of the row that it is compared with."""

    label: str
    values: Sequence[float]
    unit: Unit = Unit.SECONDS
    against: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A promised figure and what was measured; ``at_most`` or else at least."""

    text: str
    limit: float
    measured: float
    at_most: bool = True

    @property
    def met(self) -> bool:
        return self.measured <= self.limit if self.at_most else self.measured >= self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One figure on one file system, with what it takes to read it."""

    title: str
    setting: str
    rows: Sequence[Row]
    targets: Sequence[Target] = ()
    notes: Sequence[str] = ()


@dataclass(slots=True, kw_only=True)
class Report:
    """The host, the peers that are absent, and every table of the run."""

    host: dict[str, str]
    absent: dict[str, str]
    tables: list[Table] = field(default_factory=list)
    seconds: float = 0.0

    def to_json(self) -> str:
        """Everything, every sample included, in seconds and bytes."""
        return json.dumps(
            {
                "format_version": 1,
                "host": self.host,
                "absent": self.absent,
                "seconds": self.seconds,
                "tables": [asdict(table) for table in self.tables],
                "missed": [target.text for target in self.targets() if not target.met],
            },
            indent=2,
        )

    def targets(self) -> Iterator[Target]:
        """The targets of all tables."""
        for table in self.tables:
            yield from table.targets


def ratio(table_rows: Sequence[Row], label: str, against: str) -> float:
    """The ratio of two rows' medians."""
    medians = {row.label: summarize(row.values).median for row in table_rows}
    return medians[label] / medians[against]


def heading(report: Report) -> str:
    """The host, and who is not here to be compared with."""
    lines = [*_pairs(report.host), *(f"not compared: {name} ({why})" for name, why in report.absent.items())]
    return "\n".join(lines)


def text(table: Table) -> str:
    """One table with its targets and notes."""
    medians = {row.label: summarize(row.values).median for row in table.rows}
    width = max(len(row.label) for row in table.rows)
    lines = ["", f"{table.title}   [{table.setting}]"]
    lines.append(f"  {'':<{width}}  {'median':>9}  {'min':>9}  {'max':>9}  {'':<5}  {'n':>3}  ratio")
    for row in table.rows:
        scale, unit = SHOWN[row.unit]
        found = summarize(row.values)
        numbers = "  ".join(f"{_number(value * scale):>9}" for value in (found.median, found.low, found.high))
        compared = f"{found.median / medians[row.against]:.2f} x {row.against}" if row.against else ""
        lines.append(f"  {row.label:<{width}}  {numbers}  {unit:<5}  {found.count:>3}  {compared}".rstrip())
    for target in table.targets:
        sign = "at most" if target.at_most else "at least"
        state = "met" if target.met else "MISSED"
        lines.append(f"  target: {target.text} {sign} {target.limit:g}: {target.measured:.2f}, {state}")
    return "\n".join(lines + [f"  {note}" for note in table.notes])


def closing(report: Report) -> str:
    """How many targets were met, and which were not."""
    targets = list(report.targets())
    missed = [target for target in targets if not target.met]
    lines = ["", f"{len(targets) - len(missed)} of {len(targets)} targets met in {report.seconds:.0f} s"]
    return "\n".join(lines + [f"  missed: {target.text}: {target.measured:.2f}" for target in missed])


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 1000 else f"{value:.0f}"


def _pairs(values: dict[str, str]) -> list[str]:
    width = max(map(len, values))
    return [f"{name:<{width}}  {value}" for name, value in values.items()]
