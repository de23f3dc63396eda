"""Data and holes against the bytes; FIEMAP's batches against a kernel that the test plays (real ones: tests/vm)."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ramet.linux import extents
from ramet.linux.extents import Extent
from tests.unit.layouts import BLOCK, Layout, layouts, write_layout

LAST, SHARED = extents.FIEMAP_EXTENT_LAST, extents.FIEMAP_EXTENT_SHARED


def data_of(path: Path) -> list[tuple[int, int]]:
    with path.open("rb") as stream:
        return list(extents.map_data(stream.fileno()))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(layout=layouts())
def test_everything_outside_the_data_is_zero(tmp_path: Path, layout: Layout) -> None:
    path = write_layout(tmp_path / "file", layout)
    content = path.read_bytes()
    runs = data_of(path)
    assert all(start < end for start, end in runs)
    edges = [edge for run in runs for edge in run]
    assert edges == sorted(set(edges)), "runs are disjoint, in order, and not touching"
    covered = bytearray(content)
    for start, end in runs:
        assert end <= len(content)
        covered[start:end] = bytes(end - start)
    assert not any(covered)


def test_holes_are_not_data(tmp_path: Path) -> None:
    path = write_layout(tmp_path / "file", Layout(size=100 * BLOCK, data={10: b"x" * BLOCK, 90: b"y"}))
    assert data_of(path) == [(10 * BLOCK, 11 * BLOCK), (90 * BLOCK, 91 * BLOCK)]


@pytest.mark.parametrize("size", [0, 1, 100 * BLOCK])
def test_a_file_that_is_all_hole_has_no_data(tmp_path: Path, size: int) -> None:
    assert data_of(write_layout(tmp_path / "file", Layout(size=size, data={}))) == []


def test_data_ends_with_the_file(tmp_path: Path) -> None:
    assert data_of(write_layout(tmp_path / "file", Layout(size=BLOCK + 5, data={1: b"12345"}))) == [(BLOCK, BLOCK + 5)]


def test_another_error_than_the_end_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_layout(tmp_path / "file", Layout(size=BLOCK, data={}))

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr(os, "lseek", fail)
    with path.open("rb") as stream, pytest.raises(OSError, match="no"):
        list(extents.map_data(stream.fileno()))


class Kernel:
    """FS_IOC_FIEMAP over a list of extents; ``mark_last``: whether it ever sets FIEMAP_EXTENT_LAST."""

    def __init__(self, all_extents: Sequence[Extent], *, mark_last: bool = True) -> None:
        self.all = all_extents
        self.mark_last = mark_last
        self.calls: list[tuple[int, int]] = []

    def __call__(self, _fd: int, request: int, buffer: bytearray) -> int:
        assert request == extents.FS_IOC_FIEMAP
        start, length, flags, _, room, _ = extents.FIEMAP_HEADER.unpack_from(buffer)
        self.calls.append((start, flags))
        assert start + length <= 2**64 - 1
        found = [extent for extent in self.all if extent.logical + extent.length > start][:room]
        extents.FIEMAP_HEADER.pack_into(buffer, 0, start, length, flags, len(found), room, 0)
        for index, extent in enumerate(found):
            last = LAST if self.mark_last and extent is self.all[-1] else 0
            position = extents.FIEMAP_HEADER.size + index * extents.FIEMAP_EXTENT.size
            extents.FIEMAP_EXTENT.pack_into(
                buffer, position, extent.logical, extent.physical, extent.length, extent.flags | last
            )
        return 0


def many(count: int) -> list[Extent]:
    """``count`` extents of a block each, with holes between them, every third one shared."""
    return [
        Extent(logical=2 * i * BLOCK, physical=7 * i * BLOCK, length=BLOCK, flags=SHARED if i % 3 == 0 else 0)
        for i in range(count)
    ]


@pytest.mark.parametrize("count", [0, 1, extents.BATCH - 1, extents.BATCH, extents.BATCH + 1, 3 * extents.BATCH + 5])
@pytest.mark.parametrize("mark_last", [True, False])
def test_fiemap_asks_until_it_has_all_extents(monkeypatch: pytest.MonkeyPatch, count: int, mark_last: bool) -> None:
    kernel = Kernel(many(count), mark_last=mark_last)
    monkeypatch.setattr(extents, "ioctl", kernel)
    found = extents.fiemap(0)
    assert [(extent.logical, extent.physical, extent.length) for extent in found] == [
        (extent.logical, extent.physical, extent.length) for extent in kernel.all
    ]
    assert [extent.shared for extent in found] == [i % 3 == 0 for i in range(count)]
    assert extents.allocated_bytes(found) == count * BLOCK
    assert extents.exclusive_bytes(found) == (count - len(range(0, count, 3))) * BLOCK


@pytest.mark.parametrize("sync", [True, False])
def test_fiemap_writes_back_first_if_asked(monkeypatch: pytest.MonkeyPatch, sync: bool) -> None:
    """H33: before writeback, delayed allocation hides what is there."""
    kernel = Kernel(many(3))
    monkeypatch.setattr(extents, "ioctl", kernel)
    extents.fiemap(0, sync=sync)
    assert kernel.calls == [(0, extents.FIEMAP_FLAG_SYNC if sync else 0)]


# -- what has changed since a file was derived --------------------------------------------------------------------


FLAGS = st.sampled_from([SHARED, SHARED, SHARED, 0, SHARED | 0x800, SHARED | 0x2, SHARED | 0x200])
"""Shared; not; and shared, they say, but unwritten, unknown or inline: whose blocks prove nothing."""


@st.composite
def files(draw: st.DrawFn) -> list[Extent]:
    """The extents of a file of at most 24 blocks, on a disk of few blocks, so that many are the same."""
    found: list[Extent] = []
    position = 0
    while position < 24 and draw(st.booleans()):
        position += draw(st.integers(0, 3))
        length = draw(st.integers(1, 6))
        physical = position + draw(st.sampled_from([100, 100, 100, 130]))
        found.append(
            Extent(logical=position * BLOCK, physical=physical * BLOCK, length=length * BLOCK, flags=draw(FLAGS))
        )
        position += length
    return found


def by_block(found: Sequence[Extent]) -> dict[int, tuple[int, int]]:
    """Where each block of a file lies, and its flags."""
    return {
        (one.logical + offset) // BLOCK: ((one.physical + offset) // BLOCK, one.flags)
        for one in found
        for offset in range(0, one.length, BLOCK)
    }


@given(ours=files(), theirs=files())
def test_what_does_not_surely_lie_in_the_same_blocks_may_have_changed(ours: list[Extent], theirs: list[Extent]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extents, "fiemap", lambda fd: ours if fd == 1 else theirs)
        found = extents.changed_since(1, 2)
    mine, base = by_block(ours), by_block(theirs)
    same = {block for block in mine if mine[block] == base.get(block) and mine[block][1] == SHARED}
    blocks = [block for start, end in found for block in range(start // BLOCK, end // BLOCK)]
    assert blocks == sorted((mine.keys() | base.keys()) - same)
