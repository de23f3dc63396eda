"""What was measured: rows of samples, compared within one run, with the curves that are drawn of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from msgspec import Struct

from ramet.bench.samples import summarize
from ramet.model import Accelerator, Hypervisor, MemoryPolicy, Method


class Unit(StrEnum):
    """What the values of a row are in; people read them scaled."""

    SECONDS = "s"
    BYTES = "B"
    COUNT = "count"


class Role(StrEnum):
    """Whose row it is."""

    RAMET = "ramet"
    FLOOR = "floor"
    """The raw mechanism: the least that it takes."""
    PEER = "peer"
    """Another program that does as much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """All samples of one thing. ``id`` is the same on every host; ``against`` is the id of the row that it is compared with;
    ``part``: it is a part of the row above.
    """

    id: str
    label: str
    values: Sequence[float]
    unit: Unit = Unit.SECONDS
    role: Role = Role.RAMET
    against: str | None = None
    part: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A promised figure and what was measured; ``at_most`` or else at least."""

    text: str
    limit: float
    measured: float
    at_most: bool = True

    @property
    def met(self) -> bool:
        """Whether it was kept."""
        return self.measured <= self.limit if self.at_most else self.measured >= self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One line of a plot; points in the order of their x."""

    label: str
    points: Sequence[tuple[float, float]]
    role: Role = Role.RAMET


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """Curves over one another. The axes say what they are in: ``s``, ``MiB``, or nothing for a count."""

    title: str
    x: str
    y: str
    curves: Sequence[Curve]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure, with what it takes to read it."""

    id: str
    title: str
    setting: str
    rows: Sequence[Row]
    targets: Sequence[Target] = ()
    plots: Sequence[Plot] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one benchmark: its figures, or why it could not be run here."""

    name: str
    summary: str
    seconds: float
    figures: Sequence[Figure] = ()
    skipped: str | None = None


class Peer(Struct, frozen=True, kw_only=True):
    """A program that Ramet is compared with, as it is published: its version, or why it is absent and what would bring it."""

    name: str
    version: str | None
    why_absent: str | None
    mend: str | None


class HostFacts(Struct, frozen=True, kw_only=True):
    """What every figure depends on, as it is published. ``cpus`` are those that the run might use; ``load`` is that of the minute
    before it (proc_loadavg(5)); ``vmm`` is the VMM's version in its own words; ``copy_method`` is how files are derived from
    others in the store; ``guest_filled_mib`` of the guest's memory were filled with bytes that do not compress.
    """

    ramet: str
    cpu: str
    cpus: int
    memory_mib: int
    machine: str
    load: float
    kernel: str
    python: str
    hypervisor: Hypervisor
    vmm: str
    accelerator: Accelerator
    file_system: str
    copy_method: Method
    memory_policy: MemoryPolicy
    guest_memory_mib: int
    guest_filled_mib: int
    image: str
    date: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A whole run."""

    host: HostFacts
    plan: str
    """``quick`` or ``full``."""
    peers: Sequence[Peer]
    outcomes: Sequence[Outcome]
    seconds: float

    def figures(self) -> list[Figure]:
        """Of all benchmarks, in their order."""
        return [figure for outcome in self.outcomes for figure in outcome.figures]


def ratio(rows: Sequence[Row], one: str, other: str) -> float:
    """The ratio of the medians of two rows, by their ids."""
    medians = {row.id: summarize(row.values).median for row in rows}
    return medians[one] / medians[other]
