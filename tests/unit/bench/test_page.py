"""The page of a bench: what it shows of a report that was made up, and what a real browser makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ramet.bench import page, plots
from ramet.bench.documents import document
from tests.browser import Page, browser
from tests.capabilities import requires
from tests.unit.bench.made_up import report
from tests.unit.verify.test_page import Seen, assert_pleasant, shown, texts


def test_it_needs_nothing_else_and_escapes_what_is_foreign() -> None:
    seen = Seen(page.encode(document(report())))
    assert not {"script", "link", "img", "iframe", "object"} & set(seen.tags)
    assert "A CPU <of sorts>" in seen.text
    assert "A note with <angles>." in seen.text


def test_it_shows_every_row_target_peer_and_omission() -> None:
    made = document(report())
    seen = Seen(page.encode(made)).text
    for row in made.benchmarks[0].figures[0].rows:
        assert row.label in seen
    for told in (
        "MISSED a fork, against the floor, at most 1.25: 1.50",
        "met the peer, against Ramet, at least 2: 3.00",
        "Absent: libvirt save and restore (virsh was not found in PATH; Install it: apt-get install x).",
        "Compared with cp --sparse=always",
        "Skipped: Without reflinks nothing is scattered.",
    ):
        assert told in seen


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (0.0, [0.0, 1.0]),
        (10.0, [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]),
        (0.33, [0.0, 0.1, 0.2, 0.3, 0.4]),
        (4096.0, [0.0, 1000.0, 2000.0, 3000.0, 4000.0, 5000.0]),
    ],
)
def test_ticks_are_round_and_reach_as_far_as_the_values(most: float, expected: list[float]) -> None:
    assert plots.ticks(most) == pytest.approx(expected)


# -- in a browser -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium() -> Iterator[Page]:
    with browser() as opened:
        yield opened


@requires("browser")
def test_a_browser_shows_the_page(chromium: Page, tmp_path: Path) -> None:
    shown(chromium, tmp_path / "report.html", page.encode(document(report())))
    assert_pleasant(chromium)
    assert chromium.ask("document.title") == "ramet bench"
    assert texts(chromium, ".verdict") == ["MISSED", "met"]
    broken = "[...document.querySelectorAll('a')].filter(a => !document.getElementById(a.hash.slice(1))).length"
    assert chromium.ask(broken) == 0


@requires("browser")
def test_a_browser_draws_bars_as_long_as_medians_and_curves_where_their_points_are(
    chromium: Page, tmp_path: Path
) -> None:
    shown(chromium, tmp_path / "report.html", page.encode(document(report())))
    bars = chromium.ask("[...document.querySelectorAll('.drawn rect')].map(e => e.getBoundingClientRect().width)")
    widths = [width / bars[0] for width in bars]
    assert widths[:4] == pytest.approx([1, 2 / 3, 2 / 3, 1 / 30], rel=0.02)
    assert widths[5] == 0
    most = chromium.ask("document.querySelector('.drawn svg').getBoundingClientRect().width")
    assert bars[0] == pytest.approx(most * 0.3 / 0.4, rel=0.02), "the longest line is the whole width"
    curves = chromium.ask("[...document.querySelectorAll('.plot polyline')].map(e => getComputedStyle(e).stroke)")
    assert len(set(curves)) == 2, "Ramet's and a peer's are told apart"
    inside = """[...document.querySelectorAll('.plot circle, .plot text')].every(e => {
        const [a, b] = [e.getBoundingClientRect(), e.closest('svg').getBoundingClientRect()];
        return a.left >= b.left - 1 && a.right <= b.right + 1 && a.top >= b.top - 1 && a.bottom <= b.bottom + 1; })"""
    assert chromium.ask(inside)
    low, high = chromium.ask(
        "['0', '1'].map(n => document.querySelectorAll('.plot circle')[2 + Number(n)].getBoundingClientRect().top)"
    )
    assert low > high, "what takes longer is further up"
