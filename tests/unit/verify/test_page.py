"""The page of HTML: what it shows of a report that was made up, and what a real browser makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from ramet.verify.reports import page
from ramet.verify.reports.conversion import document
from ramet.verify.reports.documents import (
    InstanceDocument,
    MatrixDocument,
    MemoryMapDocument,
    ReportDocument,
    StepDocument,
)
from ramet.verify.reports.results import Matrix, MatrixRow
from ramet.verify.sabotage import SABOTAGES
from tests.browser import Page, browser
from tests.capabilities import requires
from tests.unit.verify.test_report import report

MIB = 1 << 20
TEXTS_TOO_PALE = """
(() => {
  const parts = (colour) => colour.match(/[0-9.]+/g).map(Number);
  const light = (colour) => {
    const linear = (c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = parts(colour).slice(0, 3).map((c) => linear(c / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if ((parts(colour)[3] ?? 1) > 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const pale = new Set();
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || node.closest("svg, style")) continue;
    const [a, b] = [light(getComputedStyle(node).color), light(behind(node))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) pale.add(`${contrast.toFixed(1)}: ${walk.currentNode.data.trim().slice(0, 60)}`);
  }
  return [...pale];
})()
"""
"""Text on a background with less contrast than WCAG 2 asks for (4.5 to 1)."""


def memory_map(role: str, own: tuple[int, ...], shared: tuple[int, ...]) -> MemoryMapDocument:
    return MemoryMapDocument(role=role, bytes=4 * MIB, extents=3, own=own, shared=shared)


def step(text: str, *instances: tuple[str, str, str | None], maps: tuple[MemoryMapDocument, ...] = ()) -> StepDocument:
    there = tuple(InstanceDocument(role=role, state=state, parent=parent) for role, state, parent in instances)
    return StepDocument(
        step=text, seconds=1.5, unseen=None, instances=there, disk_bytes=MIB * len(there), extents=7, memory_maps=maps
    )


def told(**changed: object) -> ReportDocument:
    """A failed report with a family of three, one of which does not live to the end."""
    source, fork, grandchild = (
        ("source", "standby", None),
        ("fork", "standby", "source"),
        ("grandchild", "standby", "fork"),
    )
    maps = (
        memory_map("source", (MIB, 0, 0, 0), (0, MIB, MIB // 2, 0)),
        memory_map("fork", (0, 0, 0, 0), (0, MIB, MIB, 0)),
    )
    steps = (
        step("booting the source", ("source", "running", None)),
        step("forking", source, fork, maps=maps),
        step("forking the fork", source, ("fork", "running", "source"), grandchild),
        step("deleting it", source, grandchild),
        msgspec.structs.replace(step("restoring"), unseen="it failed", disk_bytes=None, extents=None),
    )
    made = document(report(fail=True, cut_short="the guest wrote <script>alert(1)</script> and \x1b[31m\udcff"))
    assert isinstance(made, ReportDocument)
    (run,) = made.scenarios
    return msgspec.structs.replace(made, scenarios=(msgspec.structs.replace(run, steps=steps),), **changed)


def matrix() -> Matrix:
    caught = MatrixRow(
        sabotage="reboot", summary="booted", must_fail=("fork-same-boot",), failed=("fork-same-boot", "fork-wakes")
    )
    missed = MatrixRow(sabotage="lost-diff", summary="lost", must_fail=("fork-diff-complete",), failed=())
    not_here = MatrixRow(
        sabotage="full-copy", summary="", must_fail=("fork-disk-usage",), failed=(), not_applicable="no reflinks"
    )
    rows = (caught, missed, not_here)
    return Matrix(host={"kernel": "6.1"}, rows=rows, seconds=3.0)


class Seen(HTMLParser):
    """Tags that were opened and closed, and the text between them."""

    def __init__(self, encoded: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(encoded.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert name not in ("src", "srcset"), f"{tag} loads {value}"
            assert name != "href" or str(value).startswith("#"), f"{tag} leads out of the page, to {value}"

    def handle_data(self, data: str) -> None:
        self.text += data


def test_it_needs_nothing_else_and_what_a_guest_wrote_is_text() -> None:
    seen = Seen(page.encode(told()))
    assert not {"script", "link", "img", "iframe", "object"} & set(seen.tags)
    assert "<script>alert(1)</script> and \\x1b[31m\\xdcff" in seen.text


def test_it_shows_every_verdict_with_all_its_evidence() -> None:
    made = told()
    text = Seen(page.encode(made)).text
    for check in made.checks:
        assert check.title in text
        assert check.claim in text
        assert check.fails_if in text
        for fact in check.evidence:
            assert fact.found in text
    assert "SHA-256 a became b" in text
    assert "It was cut short" in text
    assert "1 passed, 1 failed, 1 inconclusive" in text


def test_a_sabotaged_report_says_so() -> None:
    assert "isolation was broken on purpose" in Seen(page.encode(told(sabotage="reboot"))).text
    assert "isolation was broken on purpose" not in Seen(page.encode(told())).text


# -- in a browser -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium() -> Iterator[Page]:
    with browser() as opened:
        yield opened


def shown(chromium: Page, path: Path, encoded: bytes) -> Page:
    path.write_bytes(encoded)
    chromium.complaints.clear()
    chromium.requests.clear()
    chromium.open(path)
    return chromium


def texts(chromium: Page, selector: str) -> list[str]:
    found = chromium.ask(f"[...document.querySelectorAll({selector!r})].map(e => e.innerText.trim())")
    return [str(text) for text in found]


def assert_pleasant(chromium: Page) -> None:
    """Nothing is loaded or complained about; it fits a telephone and a desk, and can be read by day and by night."""
    assert chromium.complaints == []
    assert len(chromium.requests) == 1
    for width in (360, 1200):
        chromium.resize(width)
        assert chromium.ask("document.documentElement.scrollWidth") <= width, f"at {width} pixels it must be scrolled"
    for dark in (False, True):
        chromium.dark(dark)
        assert chromium.ask(TEXTS_TOO_PALE) == [], "by night" if dark else "by day"


@requires("browser")
def test_a_browser_shows_the_report(chromium: Page, tmp_path: Path) -> None:
    made = told()
    shown(chromium, tmp_path / "report.html", page.encode(made))
    assert_pleasant(chromium)
    assert chromium.ask("document.title") == "FAIL: ramet verify"
    unseen = "[...document.querySelectorAll('.check *')].filter(e => e.innerText && !e.checkVisibility()).length"
    assert chromium.ask(unseen) == 0, "the evidence is unfolded"
    assert texts(chromium, ".disagrees") == ["fork: SHA-256 a became b"]
    broken = "[...document.querySelectorAll('a')].filter(a => !document.getElementById(a.hash.slice(1))).length"
    assert chromium.ask(broken) == 0
    assert chromium.ask("document.querySelectorAll('a').length") == 3, (
        "the scenario, and two checks that have not passed"
    )


@requires("browser")
def test_a_browser_draws_the_figures(chromium: Page, tmp_path: Path) -> None:
    shown(chromium, tmp_path / "figures.html", page.encode(told()))
    names = chromium.ask("[...document.querySelectorAll('.family tbody th')].map(e => e.innerText)")
    assert names == ["source", "└ fork", "  └ grandchild"], "as deep as they descend, and that can be seen"
    assert texts(chromium, ".family tbody tr:nth-child(2) td") == ["", "z", "R", "", "?"]
    assert texts(chromium, ".costs tbody td:nth-child(4)") == ["+1.0 MiB", "+1.0 MiB", "+1.0 MiB", "-1.0 MiB", "?"]
    captions = texts(chromium, "figcaption")
    assert captions[0] == "source after step 2, forking: 1.5 MiB shared, 1.0 MiB its own, 1.5 MiB holes, 3 extents"
    blocks = chromium.ask(
        "[...document.querySelectorAll('figure:first-of-type rect')].map(e => [e.className.baseVal, "
        "...['x', 'y', 'width', 'height'].map(n => Number(e.getAttribute(n)))])"
    )
    assert blocks == [["own", 0, 0, 1, 24], ["shared", 1, 0, 1, 24], ["shared", 2, 12, 1, 12]]
    colours = chromium.ask(
        "[...document.querySelectorAll('figure rect, figure svg')].map(e => getComputedStyle(e).fill)"
    )
    assert len(set(colours)) >= 2, "the styles apply to the figures"
    outside = (
        "[...document.querySelectorAll('rect')].filter(e => {const [r, s] = [e.getBoundingClientRect(), "
        "e.ownerSVGElement.getBoundingClientRect()]; return r.top < s.top - 1 || r.bottom > s.bottom + 1 || "
        "r.right > s.right + 1}).length"
    )
    assert chromium.ask(outside) == 0


@requires("browser")
def test_a_browser_shows_the_matrix(chromium: Page, tmp_path: Path) -> None:
    shown(chromium, tmp_path / "matrix.html", page.encode(document(matrix())))
    assert_pleasant(chromium)
    assert chromium.ask("document.title") == "1 of 2 caught: ramet verify --sabotage all"
    assert texts(chromium, "thead th")[1:] == ["fork-diff-complete", "fork-disk-usage", "fork-same-boot", "fork-wakes"]
    assert texts(chromium, "tbody tr:nth-child(1) td") == ["", "", "●", "○"]
    assert texts(chromium, "tbody tr:nth-child(2) td") == ["✗", "", "", ""]
    assert texts(chromium, "tbody tr:nth-child(3) td") == ["not here: no reflinks"]
    assert texts(chromium, "tbody .outcome") == [
        "caught by fork-same-boot; also failed: fork-wakes",
        "MISSED by fork-diff-complete",
        "",
    ]


@requires("browser")
def test_a_missed_sabotage_is_named_first_and_stands_out(chromium: Page, tmp_path: Path) -> None:
    shown(chromium, tmp_path / "matrix.html", page.encode(document(matrix())))
    assert texts(chromium, "header .trouble") == ["MISSED lost-diff: lost"]
    assert chromium.ask("document.querySelector('header .trouble a').hash") == "#lost-diff"
    behind = chromium.ask("[...document.querySelectorAll('tbody th')].map(e => getComputedStyle(e).backgroundColor)")
    assert behind[0] == behind[2] != behind[1]


@requires("browser")
def test_a_run_that_was_cut_short_is_not_said_to_have_missed_anything(chromium: Page, tmp_path: Path) -> None:
    row = MatrixRow(sabotage="a", summary="b", must_fail=("x",), failed=(), cut_short="no memory")
    made = document(Matrix(host={}, rows=(row,), seconds=3.0))
    assert isinstance(made, MatrixDocument)
    assert not made.all_caught
    for status, word in ((1, "FAIL"), (2, "INCONCLUSIVE")):
        told = msgspec.structs.replace(made, exit_status=status)
        shown(chromium, tmp_path / "matrix.html", page.encode(told))
        assert texts(chromium, "h1 .verdict") == [word]
        assert texts(chromium, "header .trouble") == ["UNKNOWN a: b"]
        assert texts(chromium, "tbody .outcome") == ["UNKNOWN, cut short: no memory"]
        assert texts(chromium, "tbody td") == ["?"]
        assert_pleasant(chromium)


FIRST_AND_LAST = """
(() => {
  const box = document.querySelector(".wide").getBoundingClientRect();
  const [first, last] = ["first", "last"].map((which) =>
    document.querySelector(`thead th:${which}-child`).getBoundingClientRect());
  return {box: [box.left, box.right], first: [first.left, first.right], last: [last.left, last.right]};
})()
"""
"""Left and right of the matrix's scroll container, and of its first and last heading."""


@requires("browser")
def test_no_column_of_the_whole_matrix_is_cut_off(chromium: Page, tmp_path: Path) -> None:
    """Every sabotage there is: on a desk all columns are seen at once, on less they are scrolled to and the names stay."""
    rows = tuple(
        MatrixRow(sabotage=one.name, summary=one.summary, must_fail=one.caught_by, failed=one.caught_by)
        for one in SABOTAGES.values()
    )
    shown(chromium, tmp_path / "all.html", page.encode(document(Matrix(host={}, rows=rows, seconds=3.0))))
    chromium.resize(1400)
    assert chromium.ask("(e => e.scrollWidth - e.clientWidth)(document.querySelector('.wide'))") == 0
    places = chromium.ask(FIRST_AND_LAST)
    assert places["last"][1] <= places["box"][1] <= 1400
    for width in (1000, 600):
        chromium.resize(width)
        assert chromium.ask("document.documentElement.scrollWidth") <= width
        chromium.ask("document.querySelector('.wide').scrollLeft = 1e6")
        places = chromium.ask(FIRST_AND_LAST)
        assert places["last"][1] <= places["box"][1] + 1, "the last is reached by scrolling"
        assert places["first"][0] == places["box"][0], "and the names are still there"
        assert places["first"][1] <= places["last"][0]
