"""What a guest believes of its timer, read off what QEMU prints of its first CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ramet.hypervisors.qemu import apic_timer
from ramet.hypervisors.qemu.apic_timer import COUNTS_PER_S, Measured, judged, measured

PRINTED = """dumping local APIC state for CPU 0

LVT0\t 0x00010000 active-hi edge  masked                      Fixed  (vec 0)
LVTT\t 0x000200ec active-hi edge  {}     Fixed  (vec 236)
Timer\t DCR=0x3 (divide by 16) initial_count = {} current_count = 17
"""
BEFORE = PRINTED.format("masked         one-shot", 0)
MEASURING = PRINTED.format("masked  periodic", 0xFFFFFFFF // 16)


def ticking(count: int) -> str:
    return PRINTED.format("               periodic", count)


def played(*texts: str) -> Callable[[], str]:
    """They are printed one after the other, the last for ever."""
    left = list(texts)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apic_timer, "EVERY_S", 0.001)


@pytest.mark.parametrize(
    ("count", "found"),
    [
        (249_994, Measured.WELL),
        (245_651, Measured.WELL),
        (270_000, Measured.WELL),
        (300_000, Measured.TOO_HIGH),
        (566_751, Measured.TOO_HIGH),
        (200_000, Measured.TOO_LOW),
        (60, Measured.TOO_LOW),
    ],
)
def test_a_guest_that_ticks_shows_what_it_has_measured(count: int, found: Measured) -> None:
    assert judged(count, 250) is found
    assert measured(played(BEFORE, BEFORE, MEASURING, MEASURING, ticking(count)), 250, 5) is found


def test_a_measurement_that_does_not_end_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux does without the timer then, and leaves it as it was."""
    monkeypatch.setattr(apic_timer, "ACCEPTED_MEASURING_S", 0.02)
    assert measured(played(BEFORE, MEASURING), 250, 5) is Measured.TOO_LOW


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(PRINTED.format("               one-shot", COUNTS_PER_S // 250), id="it ticks no more"),
        pytest.param(BEFORE, id="it never begins"),
        pytest.param("unknown command: 'info'\n", id="another text"),
    ],
)
def test_what_was_not_seen_is_unknown(text: str) -> None:
    assert measured(played(text), 250, 0.05) is Measured.UNKNOWN


def test_kernels_that_tick_otherwise_count_otherwise() -> None:
    assert judged(62_500, 1000) is judged(625_000, 100) is judged(208_333, 300) is Measured.WELL
    assert judged(250_000, 1000) is Measured.TOO_HIGH
    assert judged(250_000, 100) is Measured.TOO_LOW
