"""What is drawn of figures, as SVG without a script: a bar for a row, and curves over axes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from xml.etree import ElementTree as Xml

from ramet.bench import text
from ramet.bench.documents import CurveDocument, PlotDocument, RowDocument
from ramet.verify.reports.markup import element

BAR_WIDTH, BAR_HEIGHT = 100.0, 14.0
WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 60, 40, 14, 40
TICKS = 5
DASHES = ("", "6 4", "2 3", "8 3 2 3")
"""Of the curves of one plot, so that they are told apart without colours."""


def bar(row: RowDocument, most: float) -> Xml.Element:
    """A row's median as a bar, its extremes as a line across, its samples as ticks; as long as ``most`` is the whole width."""
    scale = BAR_WIDTH / most if most > 0 else 0.0
    middle = BAR_HEIGHT / 2
    told = " to ".join(f"{text.shown(value, row)} {text.unit_of(row)}".rstrip() for value in (row.min, row.max))
    drawn = element(
        "svg",
        element("title", f"{row.label}: {told}"),
        element("rect", class_=row.role, x="0", y="2", width=_n(max(row.median * scale, 0)), height=_n(BAR_HEIGHT - 4)),
        _line(max(row.min * scale, 0), middle, max(row.max * scale, 0), middle, "range"),
        viewBox=f"0 0 {BAR_WIDTH:g} {BAR_HEIGHT:g}",
        preserveAspectRatio="none",
        role="img",
    )
    for value in row.samples:
        x = max(value * scale, 0)
        drawn.append(_line(x, middle - 3, x, middle + 3, "sample"))
    return drawn


def plot(one: PlotDocument) -> Xml.Element:
    """Curves over axes from 0, with a key."""
    points = [point for curve in one.curves for point in curve.points]
    x_ticks = ticks(max((x for x, _ in points), default=0))
    y_ticks = ticks(max((y for _, y in points), default=0))
    drawn = element("svg", element("title", one.title), viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img")
    for value in y_ticks:
        y = _y(value, y_ticks)
        drawn.append(_line(LEFT, y, WIDTH - RIGHT, y, "grid"))
        drawn.append(element("text", _label(value, one.y), x=_n(LEFT - 6), y=_n(y + 4), class_="y"))
    for value in x_ticks:
        x = _x(value, x_ticks)
        drawn.append(_line(x, HEIGHT - BOTTOM, x, HEIGHT - BOTTOM + 4, "axis"))
        drawn.append(element("text", _label(value, one.x), x=_n(x), y=_n(HEIGHT - BOTTOM + 18), class_="x"))
    drawn.append(_line(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM, "axis"))
    for number, curve in enumerate(one.curves):
        drawn.extend(_curve(curve, number, x_ticks, y_ticks, one))
    return element("figure", element("figcaption", one.title), drawn, *_key(one.curves), class_="plot")


def ticks(most: float) -> list[float]:
    """Round numbers from 0 on, the last of which is not below ``most``; about ``TICKS`` of them."""
    if most <= 0:
        return [0.0, 1.0]
    rough = most / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    return [number * step for number in range(math.ceil(most / step - 1e-9) + 1)]


def _curve(
    curve: CurveDocument, number: int, x_ticks: Sequence[float], y_ticks: Sequence[float], one: PlotDocument
) -> Iterator[Xml.Element]:
    placed = [(_x(x, x_ticks), _y(y, y_ticks)) for x, y in curve.points]
    path = " ".join(f"{_n(x)},{_n(y)}" for x, y in placed)
    yield element("polyline", points=path, class_=f"curve {curve.role}", **_dashes(number))
    for (x, y), (x_value, y_value) in zip(placed, curve.points, strict=True):
        told = f"{curve.label}: {_label(x_value, one.x)}, {_label(y_value, one.y)}"
        yield element("circle", element("title", told), cx=_n(x), cy=_n(y), r="3", class_=curve.role)


def _key(curves: Sequence[CurveDocument]) -> list[Xml.Element]:
    if len(curves) < 2:
        return []
    keys: list[Xml.Element | str] = []
    for number, curve in enumerate(curves):
        line = element("line", x1="0", y1="5", x2="30", y2="5", class_=f"curve {curve.role}", **_dashes(number))
        keys += [element("svg", line, viewBox="0 0 30 10", class_="dash"), f" {curve.label}   "]
    return [element("p", *keys, class_="legend")]


def _dashes(number: int) -> dict[str, str]:
    return {"stroke-dasharray": DASHES[number % len(DASHES)]}


def _x(value: float, x_ticks: Sequence[float]) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * value / x_ticks[-1]


def _y(value: float, y_ticks: Sequence[float]) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / y_ticks[-1]


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Xml.Element:
    return element("line", x1=_n(x1), y1=_n(y1), x2=_n(x2), y2=_n(y2), class_=kind)


def _label(value: float, unit: str) -> str:
    return f"{value:.4g} {unit}".rstrip()


def _n(value: float) -> str:
    return f"{value:.2f}"
