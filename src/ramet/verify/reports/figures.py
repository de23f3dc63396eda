"""The figures of the page: who lived when, what each step cost, and where each memory file lies."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree as Xml

from ramet.model import MIB
from ramet.verify.reports.documents import InstanceDocument, MemoryMapDocument, StepDocument
from ramet.verify.reports.markup import element

BAR_HEIGHT = 24
LETTERS = {
    "creating": "c",
    "running": "R",
    "paused": "P",
    "standby": "z",
    "stopped": "s",
    "failed": "!",
    "snapshot": "◆",
}


def size(size_bytes: int, *, signed: bool = False) -> str:
    """In MiB, with one digit."""
    return f"{size_bytes / MIB:+.1f} MiB" if signed else f"{size_bytes / MIB:.1f} MiB"


# -- who lived when -----------------------------------------------------------------------------------------------


def family(steps: Sequence[StepDocument]) -> Xml.Element:
    """A row for each instance, below the one that it was forked from; a column for each step; the state that it was in."""
    parents: dict[str, str | None] = {}
    for step in steps:
        for one in step.instances:
            parents.setdefault(one.role, one.parent)
    head = element(
        "tr",
        element("th", "after step", scope="col"),
        *(element("th", str(number), scope="col", title=step.step) for number, step in enumerate(steps, start=1)),
    )
    rows = [_life(role, depth, steps) for role, depth in _in_order(parents)]
    used = {one.state for step in steps for one in step.instances}
    legend = "   ".join(f"{letter} {state}" for state, letter in LETTERS.items() if state in used)
    table = element("table", element("thead", head), element("tbody", *rows), class_="family")
    return element("div", table, element("p", legend, class_="legend"), class_="wide")


def _in_order(parents: dict[str, str | None]) -> list[tuple[str, int]]:
    """Each role and how deep it stands, children right after their parents."""
    found: list[tuple[str, int]] = []

    def add(role: str, depth: int) -> None:
        found.append((role, depth))
        for child, parent in parents.items():
            if parent == role and child != role:
                add(child, depth + 1)

    for role, parent in parents.items():
        if parent is None or parent not in parents:
            add(role, 0)
    return found


def _life(role: str, depth: int, steps: Sequence[StepDocument]) -> Xml.Element:
    lead = "  " * (depth - 1) + "└ " if depth else ""
    cells = [_state(next((one for one in step.instances if one.role == role), None), step) for step in steps]
    return element("tr", element("th", f"{lead}{role}", scope="row"), *cells)


def _state(one: InstanceDocument | None, step: StepDocument) -> Xml.Element:
    if step.unseen:
        return element("td", "?", title=f"not seen: {step.unseen}")
    if one is None:
        return element("td")
    return element("td", LETTERS.get(one.state, one.state), class_=f"state {one.state}", title=one.state)


# -- what each step cost ------------------------------------------------------------------------------------------


def costs(steps: Sequence[StepDocument]) -> Xml.Element:
    """Time, and how much more, or less, all files together occupied than after the step before."""
    titles = (("", ""), ("step", ""), ("time", "number"), ("disk", "number"), ("extents", "number"))
    head = element("tr", *(element("th", text, scope="col", class_=kind) for text, kind in titles))
    rows = []
    longest = max((step.seconds for step in steps), default=0) or 1
    before: StepDocument | None = None
    for number, step in enumerate(steps, start=1):
        share = f"width:{100 * step.seconds / longest:.1f}%"
        time = element(
            "td", f"{step.seconds:.2f} s", element("div", element("div", style=share), class_="bar"), class_="number"
        )
        rows.append(
            element(
                "tr", element("th", str(number), scope="row"), element("td", step.step), time, *_growth(step, before)
            )
        )
        before = step if step.disk_bytes is not None else before
    return element(
        "div", element("table", element("thead", head), element("tbody", *rows), class_="costs"), class_="wide"
    )


def _growth(step: StepDocument, before: StepDocument | None) -> tuple[Xml.Element, Xml.Element]:
    if step.disk_bytes is None or step.extents is None:
        why = step.unseen or "the file system cannot tell"
        return element("td", "?", title=why, class_="number"), element("td", "?", title=why, class_="number")
    bytes_before = (before.disk_bytes if before else None) or 0
    extents_before = (before.extents if before else None) or 0
    return (
        element(
            "td",
            size(step.disk_bytes - bytes_before, signed=True),
            class_="number",
            title=f"{size(step.disk_bytes)} in all",
        ),
        element("td", f"{step.extents - extents_before:+d}", class_="number", title=f"{step.extents} in all"),
    )


# -- where the memory files lie -----------------------------------------------------------------------------------


def memory_maps(steps: Sequence[StepDocument]) -> Xml.Element:
    """A bar for each memory file, drawn again after each step that changed it; from its first byte, left, to its last."""
    bars = [
        _memory_map(number, step.step, one) for number, step in enumerate(steps, start=1) for one in step.memory_maps
    ]
    if not bars:
        return element("p", "The file system cannot tell where the bytes of a file lie.")
    legend = element(
        "p",
        element("i", class_="key shared"),
        " the same blocks as another memory file of this run   ",
        element("i", class_="key own"),
        " blocks of its own   ",
        element("i", class_="key hole"),
        " hole: nothing is stored, it reads as zeros",
        class_="legend",
    )
    return element("div", legend, *bars, class_="maps")


def _memory_map(number: int, step: str, one: MemoryMapDocument) -> Xml.Element:
    own, shared = sum(one.own), sum(one.shared)
    told = f"{size(shared)} shared, {size(own)} its own, {size(max(one.bytes - own - shared, 0))} holes, {one.extents} extents"
    return element(
        "figure",
        element("figcaption", element("b", one.role), f" after step {number}, {step}: {told}"),
        _bar(one, f"{one.role} after step {number}: {told}"),
    )


def _bar(one: MemoryMapDocument, label: str) -> Xml.Element:
    """Each part of the file one column: its own blocks at the bottom, the shared ones above, the hole is what is left."""
    count = len(one.own)
    drawn = element(
        "svg",
        element("title", label),
        viewBox=f"0 0 {count} {BAR_HEIGHT}",
        preserveAspectRatio="none",
        role="img",
    )
    part = max(one.bytes / count, 1) if count else 1
    heights = [
        (BAR_HEIGHT * own / part, BAR_HEIGHT * shared / part) for own, shared in zip(one.own, one.shared, strict=True)
    ]
    start = 0
    for index in range(1, count + 1):
        if index < count and heights[index] == heights[start]:
            continue
        own, shared = heights[start]
        for kind, top, height in (("own", BAR_HEIGHT - own, own), ("shared", BAR_HEIGHT - own - shared, shared)):
            if height > 0:
                drawn.append(_block(kind, start, top, index - start, height))
        start = index
    return drawn


def _block(kind: str, x: float, y: float, width: float, height: float) -> Xml.Element:
    return element("rect", class_=kind, x=f"{x:g}", y=f"{y:.2f}", width=f"{width:g}", height=f"{height:.2f}")
