"""Sums: a flipped byte is found and told by its page, and what is unchanged is not read again (H19)."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.errors import CorruptError, InterruptedByUserError
from ramet.model import MIB, PAGE_BYTES
from ramet.snapshots import sums
from tests.unit.layouts import BLOCK, Layout, allocated, layouts, write_layout
from tests.unit.snapshots.flipping import flip

BIG = 3 * MIB + 5 * PAGE_BYTES + 17
"""Four chunks, the last of them short, and half a page."""


@contextmanager
def opened(*paths: Path) -> Iterator[tuple[int, ...]]:
    fds = [os.open(path, os.O_RDWR | os.O_CREAT, 0o600) for path in paths]
    try:
        yield tuple(fds)
    finally:
        for fd in fds:
            os.close(fd)


def take(
    content: Path,
    changed: list[sums.Region] | None = None,
    *,
    base_root: str | None = None,
    stop: threading.Event | None = None,
) -> str:
    with opened(content, content.with_suffix(".sums")) as (content_fd, sums_fd):
        return sums.update(content_fd, sums_fd, changed, base_root=base_root, stop=stop)


def check(content: Path, root: str) -> sums.Damage:
    with opened(content, content.with_suffix(".sums")) as (content_fd, sums_fd):
        return sums.check(content_fd, sums_fd, root)


@pytest.fixture
def content(tmp_path: Path) -> Path:
    """Data at both ends and across the border of two chunks; the rest is hole."""
    path = tmp_path / "memory"
    with path.open("wb") as stream:
        stream.truncate(BIG)
        for offset in (0, MIB - 3, BIG - 9):
            stream.seek(offset)
            stream.write(b"content!!")
    return path


@given(before=layouts(), after=st.data())
def test_sums_that_are_brought_up_to_date_are_those_of_a_file_that_was_read_whole(
    tmp_path_factory: pytest.TempPathFactory, before: Layout, after: st.DataObject
) -> None:
    content = write_layout(tmp_path_factory.mktemp("sums") / "memory", before)
    base_root = take(content)
    blocks = -(-before.size // BLOCK)
    touched = after.draw(st.sets(st.integers(0, max(blocks - 1, 0)) if blocks else st.nothing()))
    with content.open("r+b") as stream:
        for block in touched:
            stream.seek(block * BLOCK)
            stream.write(
                after.draw(st.sampled_from([bytes(BLOCK), b"new", b"\0" * 100 + b"late"]))[
                    : before.size - block * BLOCK
                ]
            )
    assert content.stat().st_size == before.size
    changed = [(block * BLOCK, (block + 1) * BLOCK) for block in touched]
    updated, updated_sums = (
        take(content, after.draw(st.permutations(changed)), base_root=base_root),
        content.with_suffix(".sums").read_bytes(),
    )
    content.with_suffix(".sums").unlink()
    assert take(content) == updated
    assert content.with_suffix(".sums").read_bytes() == updated_sums
    assert check(content, updated).none


@pytest.mark.parametrize("offset", [0, 4095, 4096, MIB - 1, MIB, 2 * MIB + 77, 3 * MIB, BIG - 1])
def test_a_flipped_byte_is_found_and_its_page_named(content: Path, offset: int) -> None:
    root = take(content)
    assert check(content, root).none
    flip(content, offset)
    page = offset // PAGE_BYTES
    assert check(content, root) == sums.Damage(pages=(range(page, page + 1),))


def test_data_that_became_a_hole_is_found(content: Path) -> None:
    root = take(content)
    size = content.stat().st_size
    os.truncate(content, 0)
    os.truncate(content, size)
    last = BIG // PAGE_BYTES
    assert check(content, root).pages == (
        range(1),
        range(MIB // PAGE_BYTES - 1, MIB // PAGE_BYTES + 1),
        range(last, last + 1),
    )


def test_no_flipped_byte_of_the_sums_goes_unnoticed(content: Path) -> None:
    root = take(content)
    path = content.with_suffix(".sums")
    whole = path.read_bytes()
    assert len(whole) == sums.size_of(BIG)
    for offset in (0, 15, 16, sums.BLOCK_BYTES, 2 * sums.BLOCK_BYTES + 5, len(whole) - 1, len(whole) - 40):
        flip(path, offset)
        found = check(content, root)
        assert found.unknown or found.root_differs
        assert not found.pages, "what is right is not called wrong"
        flip(path, offset)
    os.truncate(path, 100)
    assert check(content, root).root_differs


def test_of_another_file_they_are_not_these(content: Path, tmp_path: Path) -> None:
    """H16: memory and sums of another generation, and the size the same."""
    root = take(content)
    flip(content, 10)
    content.with_suffix(".sums").unlink()
    take(content)
    found = check(content, root)
    assert (found.root_differs, found.pages) == (True, ())


def test_a_root_is_of_a_size_too(tmp_path: Path) -> None:
    roots = set()
    for size in (0, 1, PAGE_BYTES, MIB, MIB + 1, 2 * MIB):
        path = tmp_path / f"{size}"
        path.touch()
        os.truncate(path, size)
        roots.add(take(path))
    assert len(roots) == 6


def test_holes_cost_nothing(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    path.touch()
    os.truncate(path, 64 << 30)
    root = take(path)
    assert allocated(path.with_suffix(".sums")) == 0
    assert check(path, root).none


def test_only_what_changed_is_read(content: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base_root = take(content)
    read: list[int] = []

    def counting(fd: int, buffers: list[memoryview], offset: int) -> int:
        count = preadv(fd, buffers, offset)
        if os.path.samestat(os.fstat(fd), content.stat()):
            read.append(count)
        return count

    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", counting)
    flip(content, MIB - 1)
    root = take(content, [(MIB - PAGE_BYTES, MIB)], base_root=base_root)
    assert sum(read) == PAGE_BYTES
    monkeypatch.undo()
    assert check(content, root).none


def test_what_is_said_not_to_have_changed_and_has_is_found(content: Path) -> None:
    """An in-place write into what a guest maps, for example (H02): the sums know the page from before."""
    base_root = take(content)
    flip(content, 0)
    flip(content, MIB)
    root = take(content, [(MIB, MIB + PAGE_BYTES)], base_root=base_root)
    assert check(content, root).pages == (range(1),)


@pytest.mark.parametrize("offset", [0, 16 * 255, 4 * sums.BLOCK_BYTES + 3])
def test_damaged_sums_are_not_built_upon(content: Path, offset: int) -> None:
    """Else what is right would be called wrong in every descendant."""
    base_root = take(content)
    flip(content.with_suffix(".sums"), offset)
    with pytest.raises(CorruptError):
        take(content, [(0, PAGE_BYTES)], base_root=base_root)


def test_a_sector_that_cannot_be_read_is_told_of(content: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = take(content)

    def broken(fd: int, buffers: list[memoryview], offset: int) -> int:
        if os.path.samestat(os.fstat(fd), content.stat()) and offset < MIB:
            raise OSError(errno.EIO, "Input/output error")
        return preadv(fd, buffers, offset)

    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", broken)
    assert check(content, root) == sums.Damage(unreadable=(range(256),))


def test_it_stops_when_it_is_told_to(content: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(InterruptedByUserError):
        take(content, stop=stop)


def test_progress_is_told_of_each_byte_of_data_once(content: Path) -> None:
    root = take(content)
    told: list[int] = []
    with opened(content, content.with_suffix(".sums")) as (content_fd, sums_fd):
        sums.check(content_fd, sums_fd, root, progress=told.append)
    assert sum(told) == 4 * PAGE_BYTES
