"""What was measured, as aligned tables for people: a report of documents, in words and scaled units."""

from __future__ import annotations

from ramet.bench import peers
from ramet.bench.documents import (
    BenchDocument,
    BenchmarkDocument,
    FigureDocument,
    RowDocument,
    TargetDocument,
)
from ramet.bench.results import HostFacts, Unit
from ramet.model import MIB

QUIET = "Targets are this project's own, for a host that has nothing else to do."
SHOWN = {Unit.SECONDS: (1000.0, "ms"), Unit.BYTES: (1 / MIB, "MiB"), Unit.COUNT: (1.0, "")}


def render(found: BenchDocument) -> str:
    """The whole report."""
    lines = [*facts(found), ""]
    lines += [f"{peer.name}: {peer.version}" for peer in found.peers if peer.version is not None]
    lines += absences(found)
    for one in found.benchmarks:
        lines += _benchmark(one)
    return "\n".join([*lines, "", *_closing(found)])


def facts(found: BenchDocument) -> list[str]:
    """What the figures depend on, aligned."""
    pairs = about(found.host)
    width = max(map(len, pairs))
    return [f"{name:<{width}}  {value}" for name, value in pairs.items()]


def about(host: HostFacts) -> dict[str, str]:
    """The host, in words."""
    return {
        "host": f"{host.cpus} x {host.cpu} ({host.machine}), {host.memory_mib} MiB, load {host.load:.1f} at the start",
        "kernel": host.kernel,
        "vmm": f"{host.vmm}, {host.accelerator}",
        "store": f"{host.file_system}, {host.copy_method}",
        "guest": f"{host.guest_memory_mib} MiB, {host.guest_filled_mib} of them filled, image {host.image}",
        "forks": f"memory policy {host.memory_policy}",
        "ramet": f"{host.ramet}, Python {host.python}",
        "date": host.date,
    }


def absences(found: BenchDocument) -> list[str]:
    """The peers that were not measured: each that is absent, why, and what brings it; and those that nobody asked for."""
    missing = [peer for peer in found.peers if peer.why_absent not in (None, peers.NOT_ASKED)]
    unasked = [peer for peer in found.peers if peer.why_absent == peers.NOT_ASKED]
    said = [f"absent: {peer.name} ({peer.why_absent}{f'; {peer.mend}' if peer.mend else ''})" for peer in missing]
    if unasked:
        said.append(f"not compared with {', '.join(peer.name for peer in unasked)} ({unasked[0].mend} does)")
    return said


def _benchmark(one: BenchmarkDocument) -> list[str]:
    if one.skipped is not None:
        return ["", f"{one.name}: skipped: {one.skipped}"]
    return [line for figure in one.figures for line in _figure(figure)]


def _figure(figure: FigureDocument) -> list[str]:
    width = max(len(row.label) + 2 * row.part for row in figure.rows)
    labels = {row.id: row.label for row in figure.rows}
    lines = ["", f"{figure.title}   [{figure.setting}]"]
    lines.append(f"  {'':<{width}}  {'median':>9}  {'min':>9}  {'max':>9}  {'':<4} {'n':>3}  ratio".rstrip())
    for row in figure.rows:
        numbers = "  ".join(f"{shown(value, row):>9}" for value in (row.median, row.min, row.max))
        compared = f"{row.ratio:.2f} x {labels[row.against]}" if row.against and row.ratio is not None else ""
        label = f"  {row.label}" if row.part else row.label
        lines.append(f"  {label:<{width}}  {numbers}  {unit_of(row):<4} {row.count:>3}  {compared}".rstrip())
    lines += [f"  target: {in_words(target)}" for target in figure.targets]
    return lines + [f"  {note}" for note in figure.notes]


def in_words(target: TargetDocument) -> str:
    """A promise, and whether it was kept."""
    sign = "at most" if target.at_most else "at least"
    return f"{target.text} {sign} {target.limit:g}: {target.measured:.2f}, {'met' if target.met else 'MISSED'}"


def unit_of(row: RowDocument) -> str:
    """What people read its values in."""
    return SHOWN[Unit(row.unit)][1]


def shown(value: float, row: RowDocument) -> str:
    """One of its values, scaled."""
    scaled = value * SHOWN[Unit(row.unit)][0]
    return f"{scaled:.3f}" if abs(scaled) < 10 else f"{scaled:.1f}" if abs(scaled) < 1000 else f"{scaled:.0f}"


def _closing(found: BenchDocument) -> list[str]:
    targets = [target for one in found.benchmarks for figure in one.figures for target in figure.targets]
    missed = [target for target in targets if not target.met]
    lines = [f"{len(targets) - len(missed)} of {len(targets)} targets met, in {found.seconds:.0f} s ({found.plan})"]
    lines += [f"  missed: {target.text} {target.measured:.2f}" for target in missed]
    return [*lines, f"  {QUIET}"] if missed else lines
