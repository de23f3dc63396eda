"""Numbers of pages, as ranges and in words."""

from __future__ import annotations

from collections.abc import Iterable


def ranges(numbers: Iterable[int]) -> tuple[range, ...]:
    """Numbers that are in order, each run of them as one range."""
    found: list[range] = []
    for number in numbers:
        if found and found[-1].stop == number:
            found[-1] = range(found[-1].start, number + 1)
        else:
            found.append(range(number, number + 1))
    return tuple(found)


def in_words(pages: Iterable[range], *, limit: int = 8) -> str:
    """``pages 0-3, 77 (5 in all)``; no more than ``limit`` ranges."""
    ranges = list(pages)
    shown = [f"{one.start}-{one.stop - 1}" if len(one) > 1 else str(one.start) for one in ranges[:limit]]
    more = ", …" if len(ranges) > limit else ""
    total = sum(map(len, ranges))
    return f"page{'s' if total != 1 else ''} {', '.join(shown)}{more}" + (f" ({total} in all)" if total > 1 else "")
