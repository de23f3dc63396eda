"""Numbers of pages, as ranges and in words."""

from __future__ import annotations

from ramet import pages


def test_each_run_of_numbers_is_one_range() -> None:
    assert pages.ranges([]) == ()
    assert pages.ranges([0, 1, 2, 5, 7, 8]) == (range(3), range(5, 6), range(7, 9))


def test_pages_in_words() -> None:
    assert pages.in_words([range(7, 8)]) == "page 7"
    assert pages.in_words([range(4), range(77, 78)]) == "pages 0-3, 77 (5 in all)"
    many = [range(2 * page, 2 * page + 1) for page in range(20)]
    assert pages.in_words(many, limit=3) == "pages 0, 2, 4, … (20 in all)"
