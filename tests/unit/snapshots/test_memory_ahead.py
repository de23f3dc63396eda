"""A memory file that is begun while its process runs: whatever is written meanwhile, the result is what it has in the end.

What the kernel notes of writes is played here, so that this runs on every kernel; ``tests/lab/test_soft_dirty.py`` has the real.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.linux import soft_dirty
from ramet.model import PAGE_BYTES, SnapshotFile
from ramet.snapshots import memory
from ramet.snapshots.dirty import DirtyRun, copy_runs, find_dirty, minus, union
from ramet.snapshots.memory import Begun, begin, finish
from ramet.snapshots.scatter import Scatter
from tests.unit.children import Mapper
from tests.unit.snapshots.memory_files import ONES, PAGES, ZEROS, capture_memory, data_pages, full_base, hole

SCATTER = Scatter()


class Noted:
    """What a process has written since its bits were cleared, as the kernel would tell."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.child: Mapper | None = None
        self.pages: set[int] = set()
        self.clears = 0
        self.during: list[Callable[[], None]] = []
        """What the process does while it is copied."""
        monkeypatch.setattr(memory, "AHEAD_MIN_BYTES", 0)
        monkeypatch.setattr(soft_dirty, "are_reliable", lambda: True)
        monkeypatch.setattr(soft_dirty, "clear", self.clear)
        monkeypatch.setattr(memory, "find_dirty", self.find)
        monkeypatch.setattr(memory, "copy_runs", self.copy)

    def write(self, page: int, data: bytes) -> None:
        assert self.child is not None
        self.child.write(page * PAGE_BYTES, data)
        self.pages |= set(range(page, page + len(data) // PAGE_BYTES))

    def clear(self, _pid: int) -> bool:
        self.pages.clear()
        self.clears += 1
        return True

    def find(self, vmm: Any, path: Path, *, since_cleared: bool = False) -> list[DirtyRun]:
        runs = find_dirty(vmm, path)
        if not since_cleared:
            return runs
        pages = [_page(run, page) for run in runs for page in range(run.length // PAGE_BYTES)]
        return [one for one in pages if one.file_offset // PAGE_BYTES in self.pages]

    def copy(self, *arguments: Any, **options: Any) -> int:
        written = copy_runs(*arguments, **options)
        if self.during:
            self.during.pop(0)()
        return written


def _page(run: DirtyRun, page: int) -> DirtyRun:
    return DirtyRun(
        address=run.address + page * PAGE_BYTES, file_offset=run.file_offset + page * PAGE_BYTES, length=PAGE_BYTES
    )


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> Noted:
    return Noted(monkeypatch)


def begun(child: Mapper, base: Path, into: Path) -> Begun:
    return begin(child.vmm, mapped_file=base, into=into, scatter=SCATTER, guest_runs=True)


def finished(child: Mapper, work: Begun, base: Path) -> tuple[SnapshotFile, memory.Regions]:
    return finish(child.vmm, work, mapped_file=base, base_is_empty=False, scatter=SCATTER)


@pytest.mark.parametrize("make", [full_base, hole])
def test_what_is_written_during_and_after_a_round_is_in_the_result(
    noted: Noted, tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    """H10 too: a page of zeros over one that was copied ahead."""
    base, into = make(tmp_path / "base"), tmp_path / "into"
    with Mapper(base) as child:
        noted.child = child
        noted.write(0, ONES * 20)
        noted.during = [lambda: noted.write(2, ZEROS * 2)]
        work = begun(child, base, into)
        noted.write(3, b"3" * PAGE_BYTES)
        noted.write(30, b"new" + ONES[3:])
        noted.write(7, ZEROS)
        made, dirty = finished(child, work, base)
        assert into.read_bytes() == child.read()
    assert dirty == ((0, 20 * PAGE_BYTES), (30 * PAGE_BYTES, 31 * PAGE_BYTES))
    assert made.written_bytes == 21 * PAGE_BYTES, "each page counts once"


def test_a_page_that_is_the_files_again_is_taken_back(noted: Noted, tmp_path: Path) -> None:
    """A VMM may drop pages (MADV_DONTNEED): they are not noted, and not dirty any more."""
    base, into = full_base(tmp_path / "base"), tmp_path / "into"
    with Mapper(base) as child:
        noted.child = child
        noted.write(4, ONES * 4)
        work = begun(child, base, into)
        child.advise(5 * PAGE_BYTES, PAGE_BYTES, mmap.MADV_DONTNEED)
        _, dirty = finished(child, work, base)
        assert into.read_bytes() == child.read()
    assert {page for low, end in dirty for page in range(low // PAGE_BYTES, end // PAGE_BYTES)} == {4, 5, 6, 7}


def test_what_is_noted_is_cleared_once(noted: Noted, tmp_path: Path) -> None:
    """Between reading it and clearing it again something could be written: QEMU is not stopped with its vCPUs."""
    base, into = full_base(tmp_path / "base"), tmp_path / "into"
    with Mapper(base) as child:
        noted.child = child
        noted.write(0, ONES * 40)
        noted.during = [partial(noted.write, 0, ZEROS * 39)]
        work = begun(child, base, into)
        finished(child, work, base)
        assert noted.clears == 1
        assert into.read_bytes() == child.read()


def test_what_is_noted_no_more_is_copied_again_whole(
    noted: Noted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KSM that is switched on meanwhile may take a bit away."""
    base, into = full_base(tmp_path / "base"), tmp_path / "into"
    with Mapper(base) as child:
        noted.child = child
        noted.write(0, ONES * 10)
        work = begun(child, base, into)
        noted.write(3, ZEROS * 2)
        noted.write(30, ONES)
        noted.pages.clear()
        monkeypatch.setattr(soft_dirty, "are_reliable", lambda: False)
        finished(child, work, base)
        assert into.read_bytes() == child.read()


def test_pages_of_zeros_that_come_late_stay_holes(noted: Noted, tmp_path: Path) -> None:
    base, into = hole(tmp_path / "base"), tmp_path / "into"
    with Mapper(base) as child:
        noted.child = child
        noted.write(0, ONES * 2)
        work = begun(child, base, into)
        noted.write(10, ZEROS * 5)
        noted.write(1, ZEROS)
        finished(child, work, base)
        assert into.read_bytes() == child.read()
    assert data_pages(into) == [0, 1]


def test_few_pages_are_copied_in_the_pause(noted: Noted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, into = full_base(tmp_path / "base"), tmp_path / "into"
    monkeypatch.setattr(memory, "AHEAD_MIN_BYTES", 11 * PAGE_BYTES)
    with Mapper(base) as child:
        noted.child = child
        noted.write(0, ONES * 10)
        work = begun(child, base, into)
        assert work.copied is None
        finished(child, work, base)
        assert into.read_bytes() == child.read()


def test_a_kernel_that_notes_nothing_leaves_all_to_the_pause(
    noted: Noted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, into = full_base(tmp_path / "base"), tmp_path / "into"
    monkeypatch.setattr(soft_dirty, "are_reliable", lambda: False)
    with Mapper(base) as child:
        noted.child = child
        noted.write(0, ONES * 10)
        work = begun(child, base, into)
        assert work.copied is None
        noted.write(5, ZEROS * 10)
        finished(child, work, base)
        assert into.read_bytes() == child.read()


@settings(deadline=None)
@given(data=st.data())
def test_begun_or_not_the_result_is_the_same(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Any writes before, during each round and after: the file equals one that was captured whole."""
    writes = st.lists(
        st.tuples(st.integers(0, PAGES - 4), st.sampled_from([ONES, ZEROS, ONES * 3, ZEROS * 3])), max_size=6
    )
    tmp_path = tmp_path_factory.mktemp("ahead")
    base = data.draw(st.sampled_from([full_base, hole]))(tmp_path / "base")
    with pytest.MonkeyPatch.context() as monkeypatch, Mapper(base) as child:
        noted = Noted(monkeypatch)
        noted.child = child

        def some(what: Sequence[tuple[int, bytes]]) -> None:
            for page, content in what:
                noted.write(page, content)

        some(data.draw(writes))
        noted.during = [partial(some, data.draw(writes))]
        work = begun(child, base, tmp_path / "into")
        some(data.draw(writes))
        noted.during.clear()  # it is stopped from here on
        _, dirty = finished(child, work, base)
        monkeypatch.undo()
        _, whole = capture_memory(
            child.vmm, mapped_file=base, into=tmp_path / "whole", base_is_empty=False, scatter=SCATTER
        )
        assert (tmp_path / "into").read_bytes() == (tmp_path / "whole").read_bytes() == child.read()
    assert {page for low, end in whole for page in range(low, end, PAGE_BYTES)} <= {
        page for low, end in dirty for page in range(low, end, PAGE_BYTES)
    }


@st.composite
def runs(draw: st.DrawFn) -> list[DirtyRun]:
    pages = sorted(draw(st.sets(st.integers(0, 40))))
    found: list[DirtyRun] = []
    for page in pages:
        if found and found[-1].address + found[-1].length == page and draw(st.booleans()):
            last = found.pop()
            found.append(DirtyRun(address=last.address, file_offset=last.file_offset, length=last.length + 1))
        else:
            found.append(DirtyRun(address=page, file_offset=page + 1000, length=1))
    return found


def pages_of(found: Sequence[DirtyRun]) -> list[int]:
    for run in found:
        assert run.file_offset - run.address == 1000
    return [run.address + page for run in found for page in range(run.length)]


@given(one=runs(), other=runs())
def test_sets_of_pages(one: list[DirtyRun], other: list[DirtyRun]) -> None:
    assert pages_of(minus(one, other)) == sorted(set(pages_of(one)) - set(pages_of(other)))
    assert pages_of(union(one, other)) == sorted(set(pages_of(one)) | set(pages_of(other)))
