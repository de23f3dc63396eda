"""Evidence about files and processes, against answers that are found another way."""

from __future__ import annotations

import hashlib
import mmap
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.verify import evidence

MIB = 1 << 20


def sparse(path: Path, size_bytes: int, pieces: dict[int, bytes]) -> Path:
    with path.open("wb") as stream:
        stream.truncate(size_bytes)
        for offset, data in pieces.items():
            stream.seek(offset)
            stream.write(data)
    return path


@given(
    size=st.integers(0, 3 * MIB),
    pieces=st.dictionaries(st.integers(0, 3 * MIB), st.binary(min_size=1, max_size=5000), max_size=6),
)
@settings(max_examples=40, deadline=None)
def test_the_digest_is_that_of_all_bytes_holes_included(
    size: int, pieces: dict[int, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = sparse(tmp_path_factory.mktemp("sparse") / "file", size, pieces)
    found = evidence.fingerprint(path)
    data = path.read_bytes()
    assert found.sha256 == hashlib.sha256(data).hexdigest()
    assert found.size_bytes == len(data)
    assert evidence.differences(found, evidence.fingerprint(path, drop_cache=True)) == []


def test_every_kind_of_change_is_named(tmp_path: Path) -> None:
    path = sparse(tmp_path / "memory", MIB, {0: b"before"})
    before = evidence.fingerprint(path)
    assert evidence.differences(before, evidence.fingerprint(path)) == []
    with path.open("r+b") as stream:
        stream.seek(MIB - 1)
        stream.write(b"x")
    assert [text.split()[0] for text in evidence.differences(before, evidence.fingerprint(path))] == ["SHA-256"]
    copy = tmp_path / "copy"
    copy.write_bytes(path.read_bytes())
    copy.rename(path)
    assert "inode" in " ".join(evidence.differences(before, evidence.fingerprint(path)))
    before = evidence.fingerprint(path)
    path.chmod(0o600 if before.mode != 0o600 else 0o400)
    (tmp_path / "link").hardlink_to(path)
    os.truncate(path, MIB + 1)
    assert {text.split()[0] for text in evidence.differences(before, evidence.fingerprint(path))} == {
        "size",
        "SHA-256",
        "mode",
        "links",
    }


def test_a_symlink_has_no_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic"):
        evidence.fingerprint(tmp_path / "link")


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
    mine = evidence._union((start, start + length) for start, length in left)
    theirs = evidence._union((start, start + length) for start, length in right)
    blocks = {block for start, length in left for block in range(start, start + length)}
    others = {block for start, length in right for block in range(start, start + length)}
    assert sum(end - start for start, end in mine) == len(blocks)
    assert evidence._overlap(mine, theirs) == len(blocks & others)
