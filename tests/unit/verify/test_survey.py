"""Memory maps, compared with a count of every byte."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ramet.linux import extents
from ramet.linux.extents import Extent
from ramet.verify import survey
from ramet.verify.survey import CELLS


@st.composite
def layouts(draw: st.DrawFn) -> list[Extent]:
    """The extents of a file: apart from each other, each anywhere on the disk."""
    found, logical = [], 0
    for _ in range(draw(st.integers(0, 6))):
        logical += draw(st.integers(0, 40))
        length = draw(st.integers(1, 60))
        found.append(Extent(logical=logical, physical=draw(st.integers(0, 300)), length=length, flags=0))
        logical += length
    return found


@given(layouts(), st.integers(1, 400), st.lists(st.tuples(st.integers(0, 300), st.integers(1, 50)), max_size=6))
def test_every_byte_is_counted_once_where_it_lies(
    found: list[Extent], size_bytes: int, theirs: list[tuple[int, int]]
) -> None:
    others = extents.union((start, start + length) for start, length in theirs)
    blocks = {block for start, end in others for block in range(start, end)}
    made = survey.memory_map("fork", size_bytes, found, others)
    own, shared = [0] * CELLS, [0] * CELLS
    for extent in found:
        for offset in range(extent.length):
            at = extent.logical + offset
            if at < size_bytes:
                counted = shared if extent.physical + offset in blocks else own
                counted[at * CELLS // size_bytes] += 1
    assert (list(made.own), list(made.shared)) == (own, shared)
    assert made.extents == len(found)


def test_a_file_that_is_empty_has_an_empty_map() -> None:
    made = survey.memory_map("fork", 0, [Extent(logical=0, physical=0, length=4096, flags=0)], [])
    assert sum(made.own) == sum(made.shared) == 0


def test_what_cannot_be_seen_is_said() -> None:
    class Broken:
        def exists(self, name: str) -> bool:
            raise PermissionError(13, "Permission denied", name)

    step = survey.step("forking", 1.0, Broken(), {"fork": "web"}, {})  # type: ignore[arg-type]
    assert step.survey is None
    assert step.unseen is not None
    assert "Permission denied" in step.unseen
