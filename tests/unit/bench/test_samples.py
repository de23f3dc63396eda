"""Statistics of samples, and the turns in which they are taken."""

from __future__ import annotations

import pytest

from ramet.bench.results import Row, Target, ratio
from ramet.bench.samples import Sample, alternate, percentile, summarize


def test_the_summary_has_the_median_and_the_extremes() -> None:
    found = summarize([4.0, 1.0, 2.0, 9.0])
    assert (found.median, found.low, found.high, found.count) == (3.0, 1.0, 9.0, 4)


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50.0), (0.99, 99.0), (1.0, 100.0), (0.001, 1.0)])
def test_a_percentile_is_a_value_that_was_measured(share: float, expected: float) -> None:
    assert percentile([float(value) for value in range(100, 0, -1)], share) == expected


def test_a_percentile_of_few_values_is_the_nearest_rank() -> None:
    assert percentile([3.0], 0.5) == 3.0
    assert percentile([1.0, 2.0], 0.99) == 2.0


def test_each_round_begins_with_another_side() -> None:
    order: list[str] = []

    def side(name: str) -> Sample:
        order.append(name)
        return {name: float(len(order))}

    found = alternate([lambda: side("a"), lambda: side("b"), lambda: side("c")], rounds=3)
    assert order == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert found == {"a": [1.0, 6.0, 8.0], "b": [2.0, 4.0, 9.0], "c": [3.0, 5.0, 7.0]}


def test_a_ratio_is_that_of_medians() -> None:
    rows = [Row(id="one", label="", values=[1.0, 3.0, 100.0]), Row(id="other", label="", values=[2.0])]
    assert ratio(rows, "one", "other") == 1.5


def test_a_target_is_met_on_its_own_side_alone() -> None:
    assert Target(text="", limit=2, measured=2).met
    assert not Target(text="", limit=2, measured=2.01).met
    assert Target(text="", limit=2, measured=2, at_most=False).met
    assert not Target(text="", limit=2, measured=1.99, at_most=False).met
