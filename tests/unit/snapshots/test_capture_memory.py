"""Memory captured from a process that maps a file privately, as a VMM does: the result is what the process sees, page by page."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ramet.model import PAGE_BYTES, Method
from ramet.snapshots import dirty as module
from tests.unit.children import Mapper
from tests.unit.layouts import Layout, layouts, write_layout
from tests.unit.snapshots.memory_files import ONES, PAGES, ZEROS, Fingerprint, capture, data_pages, full_base, hole


def test_the_result_is_what_the_process_sees_and_the_base_is_untouched(tmp_path: Path) -> None:
    base, result = full_base(tmp_path / "base"), tmp_path / "result"
    before = Fingerprint.of(base)
    with Mapper(base) as child:
        child.write(3 * PAGE_BYTES + 10, b"in the middle of a page")
        child.write(9 * PAGE_BYTES - 5, b"across a border")
        child.write((PAGES - 1) * PAGE_BYTES, ONES)
        made = capture(child, base, result)
        assert result.read_bytes() == child.read() != base.read_bytes()
    assert made.size_bytes == PAGES * PAGE_BYTES
    assert made.written_bytes == 4 * PAGE_BYTES, "pages 3, 8, 9 and the last, and no other"
    assert made.method in (Method.REFLINK, Method.COPY)
    assert Fingerprint.of(base) == before
    assert result.stat().st_ino != before.ino


def test_a_page_of_zeros_over_bytes_of_the_base_is_written(tmp_path: Path) -> None:
    """H10: taken for a hole, the base would show through."""
    base, result = full_base(tmp_path / "base"), tmp_path / "result"
    with Mapper(base) as child:
        child.write(5 * PAGE_BYTES, ZEROS)
        for claim in (False, True):
            made = capture(child, base, result, base_is_empty=claim)
            assert made.written_bytes == PAGE_BYTES
            assert result.read_bytes()[5 * PAGE_BYTES : 6 * PAGE_BYTES] == ZEROS
            assert result.read_bytes() == child.read()
            result.unlink()


def test_pages_of_zeros_over_a_base_that_is_one_hole_stay_holes(tmp_path: Path) -> None:
    """After a boot the kernel has zeroed most of the memory: the first snapshot does not pay for it."""
    base, result = hole(tmp_path / "base"), tmp_path / "result"
    with Mapper(base) as child:
        child.write(0, ZEROS * 10)
        child.write(10 * PAGE_BYTES, ONES)
        child.write(11 * PAGE_BYTES, ZEROS[:-1] + b"e")
        child.write(12 * PAGE_BYTES, ZEROS * 3)
        made = capture(child, base, result, base_is_empty=True)
        assert result.read_bytes() == child.read()
    assert data_pages(result) == [10, 11]
    assert (made.written_bytes, made.method) == (2 * PAGE_BYTES, None)
    assert made.size_bytes == PAGES * PAGE_BYTES


def test_what_was_given_back_shows_the_base_again_as_the_process_sees_it(tmp_path: Path) -> None:
    """H17: a capture and the process agree; that the base shows again is why no machine has a balloon."""
    base, result = full_base(tmp_path / "base"), tmp_path / "result"
    with Mapper(base) as child:
        child.write(2 * PAGE_BYTES, ONES * 2)
        child.advise(2 * PAGE_BYTES, PAGE_BYTES, mmap.MADV_DONTNEED)
        made = capture(child, base, result)
        assert result.read_bytes() == child.read()
    assert made.written_bytes == PAGE_BYTES


def test_runs_longer_than_the_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUFFER_BYTES", 3 * PAGE_BYTES)
    base, result = hole(tmp_path / "base"), tmp_path / "result"
    pattern = b"".join(ZEROS if page % 3 == 0 else bytes([page]) * PAGE_BYTES for page in range(20))
    with Mapper(base) as child:
        child.write(PAGE_BYTES, pattern)
        made = capture(child, base, result, base_is_empty=True)
        assert result.read_bytes() == child.read()
    assert made.written_bytes == 13 * PAGE_BYTES


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """H34."""
    base, result = full_base(tmp_path / "base"), tmp_path / "result"
    real = os.pwrite
    with Mapper(base) as child:
        child.write(PAGE_BYTES, ONES * 5)
        monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:999], offset))
        assert capture(child, base, result).written_bytes == 5 * PAGE_BYTES
        assert result.read_bytes() == child.read()


def test_a_guest_that_wrote_nothing(tmp_path: Path) -> None:
    base, result = full_base(tmp_path / "base"), tmp_path / "result"
    with Mapper(base) as child:
        assert capture(child, base, result).written_bytes == 0
    assert result.read_bytes() == base.read_bytes()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    layout=layouts(max_blocks=24, whole_blocks=True).filter(lambda layout: layout.size > 0),
    writes=st.lists(st.tuples(st.integers(0, 23), st.sampled_from([ZEROS, ONES, b"x", ZEROS + ONES])), max_size=12),
    generations=st.integers(1, 3),
)
def test_generation_after_generation(
    tmp_path: Path, layout: Layout, writes: list[tuple[int, bytes]], generations: int
) -> None:
    """Sleep, wake, write, sleep: each generation is relative to the one before, and each is complete (H09)."""
    base = write_layout(tmp_path / "generation-0", layout)
    for generation in range(1, generations + 1):
        result = tmp_path / f"generation-{generation}"
        result.unlink(missing_ok=True)
        with Mapper(base) as child:
            for page, data in writes[generation - 1 :: generations]:
                room = layout.size - page * PAGE_BYTES
                if room > 0:
                    child.write(page * PAGE_BYTES, data[:room])
            before = Fingerprint.of(base)
            capture(child, base, result, base_is_empty=not layout.data and generation == 1)
            assert result.read_bytes() == child.read()
            assert Fingerprint.of(base) == before
        base = result


# -- several mappings ---------------------------------------------------------------------------------------------


def test_two_mappings_with_their_offsets(tmp_path: Path) -> None:
    """H13: memory above and below a PCI hole. In address order the first need not be the beginning of the file."""
    base, result = full_base(tmp_path / "base"), tmp_path / "result"
    low, high = (0, 40 * PAGE_BYTES), (40 * PAGE_BYTES, 24 * PAGE_BYTES)
    for pieces in ([low, high], [high, low]):
        with Mapper(base, pieces=pieces) as child:
            child.write(39 * PAGE_BYTES, ONES)
            child.write(40 * PAGE_BYTES, b"2" * PAGE_BYTES)
            child.write(50 * PAGE_BYTES, b"3" * PAGE_BYTES)
            made = capture(child, base, result)
            assert result.read_bytes() == child.read()
        assert made.written_bytes == 3 * PAGE_BYTES
        result.unlink()
