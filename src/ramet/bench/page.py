"""The report as one page of HTML that needs nothing else, in the looks of the verifier's: tables with their bars, and plots.

It is made from the document that ``--json`` prints, so it can show nothing that that does not hold.
"""

from __future__ import annotations

from importlib.resources import files
from xml.etree import ElementTree as Xml

from ramet.bench import plots, text
from ramet.bench.documents import BenchDocument, BenchmarkDocument, FigureDocument, RowDocument, TargetDocument
from ramet.verify.reports import page
from ramet.verify.reports.markup import element

LEGEND = {"ramet": "Ramet", "floor": "the raw mechanism, the least that it takes", "peer": "a peer"}


def encode(found: BenchDocument) -> bytes:
    """The page, as UTF-8."""
    links = [element("li", element("a", one.name, href=f"#{one.name}")) for one in found.benchmarks]
    return page.whole(
        "ramet bench",
        element(
            "header",
            element("h1", "ramet bench"),
            element("p", f"{found.plan} run, in {found.seconds:.0f} s"),
            page.facts(text.about(found.host)),
            *_peers(found),
            element("nav", element("ul", *links)),
            _legend(),
        ),
        element("main", *(_benchmark(one) for one in found.benchmarks)),
        element(
            "footer",
            element(
                "p",
                "A bar ends at the median; the line across it reaches from the least to the most, with a tick for each sample. "
                "Ratios are of medians of this run, in which the sides took turns.",
            ),
        ),
        more_style=files("ramet.bench").joinpath("page.css").read_text(encoding="utf-8"),
    )


def _peers(found: BenchDocument) -> list[Xml.Element]:
    present = [f"{peer.name} ({peer.version})" for peer in found.peers if peer.version is not None]
    compared = [element("p", f"Compared with {', '.join(present)}.")] if present else []
    return compared + [
        element("p", f"{absent[0].upper()}{absent[1:]}.", class_="absent") for absent in text.absences(found)
    ]


def _legend() -> Xml.Element:
    keys = [part for role, words in LEGEND.items() for part in (element("i", class_=f"key {role}"), f" {words}   ")]
    return element("p", *keys, class_="legend")


def _benchmark(one: BenchmarkDocument) -> Xml.Element:
    skipped = [element("p", f"Skipped: {one.skipped}", class_="trouble")] if one.skipped is not None else []
    return element(
        "section",
        element("h2", one.name),
        element("p", f"{one.summary}; {one.seconds:.0f} s"),
        *skipped,
        *(part for figure in one.figures for part in _figure(figure)),
        id=one.name,
    )


def _figure(figure: FigureDocument) -> list[Xml.Element]:
    titles = (
        ("", ""),
        ("", ""),
        ("median", "number"),
        ("min", "number"),
        ("max", "number"),
        ("n", "number"),
        ("ratio", ""),
    )
    head = element("tr", *(element("th", title, scope="col", class_=kind) for title, kind in titles))
    table = element(
        "table", element("thead", head), element("tbody", *(_row(row, figure) for row in figure.rows)), class_="samples"
    )
    return [
        element("h3", figure.title),
        element("p", figure.setting, class_="setting"),
        element("div", table, class_="wide"),
        *(_target(target) for target in figure.targets),
        *(plots.plot(one) for one in figure.plots),
        *(element("p", note, class_="note") for note in figure.notes),
    ]


def _row(row: RowDocument, figure: FigureDocument) -> Xml.Element:
    most = max(other.max for other in figure.rows if other.unit == row.unit)
    labels = {other.id: other.label for other in figure.rows}
    unit = text.unit_of(row)
    numbers = [f"{text.shown(value, row)} {unit}".rstrip() for value in (row.median, row.min, row.max)]
    ratio = f"{row.ratio:.2f} × {labels[row.against]}" if row.against and row.ratio is not None else ""  # noqa: RUF001
    return element(
        "tr",
        element("th", row.label, scope="row", class_="part" if row.part else ""),
        element("td", plots.bar(row, most), class_="drawn"),
        *(element("td", number, class_="number") for number in numbers),
        element("td", str(row.count), class_="number"),
        element("td", ratio),
    )


def _target(target: TargetDocument) -> Xml.Element:
    word, kind = ("met", "pass") if target.met else ("MISSED", "fail")
    sign = "at most" if target.at_most else "at least"
    told = f" {target.text} {sign} {target.limit:g}: {target.measured:.2f}"
    return element("p", element("span", word, class_=f"verdict {kind}"), told, class_="target")
