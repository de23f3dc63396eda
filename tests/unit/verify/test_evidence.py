"""Evidence about files and processes, against answers that are found another way."""

from __future__ import annotations

import mmap
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.linux import extents
from ramet.verify import evidence
from tests.unit.verify.sparse_files import MIB, sparse


def test_reach_tells_reading_from_writing(tmp_path: Path) -> None:
    path = sparse(tmp_path / "disk.raw", MIB, {0: b"data"})
    files = evidence.identify([path, tmp_path])
    assert [file.path for file in files] == [path]
    assert evidence.reach(os.getpid(), files) == []
    with path.open("rb"):
        assert [one.can_write for one in evidence.reach(os.getpid(), files)] == [False]
    with path.open("r+b") as stream:
        assert [one.can_write for one in evidence.reach(os.getpid(), files)] == [True]
        with mmap.mmap(stream.fileno(), MIB, mmap.MAP_PRIVATE):
            assert sorted(one.can_write for one in evidence.reach(os.getpid(), files))[0] is False
        with mmap.mmap(stream.fileno(), MIB, mmap.MAP_SHARED):
            shared = [one for one in evidence.reach(os.getpid(), files) if one.how.startswith("mapping")]
            assert [one.can_write for one in shared] == [True]


def test_a_renamed_file_is_still_found_by_its_inode(tmp_path: Path) -> None:
    """H74."""
    path = sparse(tmp_path / "memory", 4 * MIB, {0: b"data"})
    with (
        path.open("rb") as stream,
        mmap.mmap(stream.fileno(), 4 * MIB, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE),
    ):
        moved = path.rename(tmp_path / "elsewhere")
        (file,) = evidence.identify([moved])
        found = evidence.guest_memory_mappings(os.getpid())
        assert [mapping.perms for mapping in found if file.is_mapping(mapping)] == ["rw-p"]


def test_small_and_read_only_mappings_are_no_guest_memory(tmp_path: Path) -> None:
    path = sparse(tmp_path / "file", 4 * MIB, {0: b"data"})
    (file,) = evidence.identify([path])
    with path.open("rb") as stream:
        with mmap.mmap(stream.fileno(), 4 * MIB, mmap.MAP_PRIVATE, mmap.PROT_READ):
            assert not [m for m in evidence.guest_memory_mappings(os.getpid()) if file.is_mapping(m)]
        with mmap.mmap(stream.fileno(), 8192, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE):
            assert not [m for m in evidence.guest_memory_mappings(os.getpid()) if file.is_mapping(m)]


@given(
    left=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=8),
    right=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=8),
)
def test_blocks_are_counted_once(left: list[tuple[int, int]], right: list[tuple[int, int]]) -> None:
    mine = extents.union((start, start + length) for start, length in left)
    theirs = extents.union((start, start + length) for start, length in right)
    blocks = {block for start, length in left for block in range(start, start + length)}
    others = {block for start, length in right for block in range(start, start + length)}
    assert sum(end - start for start, end in mine) == len(blocks)
    assert evidence.overlap(mine, theirs) == len(blocks & others)


def test_processes_that_may_not_be_looked_at_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        assert evidence.hidden_processes([child.pid]) == 0
        monkeypatch.setattr(os, "access", lambda path, _: str(path) != f"/proc/{child.pid}/fd")
        assert evidence.hidden_processes([child.pid]) == 1
        assert evidence.hidden_processes() == 1
        assert evidence.hidden_processes([]) == 0
    assert evidence.hidden_processes([child.pid]) == 0, "it has ended"
