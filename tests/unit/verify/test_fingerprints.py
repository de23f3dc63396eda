"""Fingerprints and page digests, against answers that are found another way."""

from __future__ import annotations

import hashlib
import os
import subprocess
from itertools import chain, pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.linux import extents
from ramet.verify.fingerprints import (
    PAGE_BYTES,
    PageDigests,
    differences,
    fingerprint,
    fingerprints,
    page_digests,
)
from tests.unit.verify.sparse_files import MIB, sparse

PIECES = st.dictionaries(st.integers(0, 3 * MIB), st.binary(min_size=1, max_size=5000), max_size=6)


@given(size=st.integers(0, 3 * MIB), pieces=PIECES)
@settings(max_examples=40, deadline=None)
def test_the_digest_is_that_of_all_bytes_holes_included(
    size: int, pieces: dict[int, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = sparse(tmp_path_factory.mktemp("sparse") / "file", size, pieces)
    found = fingerprint(path)
    data = path.read_bytes()
    assert found.sha256 == hashlib.sha256(data).hexdigest()
    assert found.size_bytes == len(data)
    assert differences(found, fingerprint(path, drop_cache=True)) == []


def test_every_kind_of_change_is_named(tmp_path: Path) -> None:
    path = sparse(tmp_path / "memory", MIB, {0: b"before"})
    before = fingerprint(path)
    assert differences(before, fingerprint(path)) == []
    with path.open("r+b") as stream:
        stream.seek(MIB - 1)
        stream.write(b"x")
    assert [text.split()[0] for text in differences(before, fingerprint(path))] == ["SHA-256"]
    copy = tmp_path / "copy"
    copy.write_bytes(path.read_bytes())
    copy.rename(path)
    assert "inode" in " ".join(differences(before, fingerprint(path)))
    before = fingerprint(path)
    path.chmod(0o600 if before.mode != 0o600 else 0o400)
    (tmp_path / "link").hardlink_to(path)
    os.truncate(path, MIB + 1)
    assert {text.split()[0] for text in differences(before, fingerprint(path))} == {
        "size",
        "SHA-256",
        "mode",
        "links",
    }


def test_a_symlink_has_no_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic"):
        fingerprint(tmp_path / "link")


def test_the_digest_is_sha256sum_s_and_holes_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sparse(tmp_path / "memory", 64 * MIB, {5 * MIB: os.urandom(MIB), 60 * MIB: os.urandom(5)})
    said = subprocess.run(["sha256sum", path], capture_output=True, check=True, text=True).stdout
    real, read = os.preadv, 0

    def counting(fd: int, buffers: list[memoryview], offset: int) -> int:
        nonlocal read
        count = real(fd, buffers, offset)
        read += count
        return count

    monkeypatch.setattr(os, "preadv", counting)
    assert fingerprint(path).sha256 == said.split()[0]
    assert read < 2 * MIB


def test_the_files_of_a_directory(tmp_path: Path) -> None:
    for number in range(5):
        sparse(tmp_path / f"file-{number}", MIB, {number * PAGE_BYTES: os.urandom(100)})
    assert fingerprints(tmp_path) == {path.name: fingerprint(path) for path in tmp_path.iterdir()}


def test_a_file_that_is_cut_short_meanwhile_has_no_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sparse(tmp_path / "memory", MIB, {0: os.urandom(MIB)})

    def map_data(fd: int) -> list[tuple[int, int]]:
        os.truncate(path, 10)
        return [(0, MIB)]

    monkeypatch.setattr(extents, "map_data", map_data)
    with pytest.raises(OSError, match="cut short"):
        fingerprint(path)


# -- pages --------------------------------------------------------------------------------------------------------


@given(size=st.integers(0, 3 * MIB), before=PIECES, after=PIECES)
@settings(max_examples=60, deadline=None)
def test_the_pages_that_differ_are_those_that_differ(
    size: int, before: dict[int, bytes], after: dict[int, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Compared byte by byte, whatever is a hole in which file."""
    directory = tmp_path_factory.mktemp("pages")
    one, other = sparse(directory / "one", size, before), sparse(directory / "other", size, after)
    left, right = one.read_bytes(), other.read_bytes()
    pages = -(-max(len(left), len(right)) // PAGE_BYTES)
    left, right = left.ljust(pages * PAGE_BYTES, b"\0"), right.ljust(pages * PAGE_BYTES, b"\0")
    expected = [
        page
        for page in range(pages)
        if left[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] != right[page * PAGE_BYTES : (page + 1) * PAGE_BYTES]
    ]
    found = page_digests(one).differing(page_digests(other))
    assert list(chain.from_iterable(found)) == expected
    assert all(first.stop < second.start for first, second in pairwise(found)), "joined ranges"
    assert page_digests(other).differing(page_digests(one)) == found


def test_a_last_page_counts_as_whoever_maps_it_sees_it(tmp_path: Path) -> None:
    """With zeros after its end: a file that only grew by zeros has no other page."""
    short, longer = tmp_path / "short", tmp_path / "longer"
    short.write_bytes(b"abc")
    longer.write_bytes(b"abc" + bytes(5))
    assert page_digests(short).differing(page_digests(longer)) == []
    longer.write_bytes(b"abc" + bytes(4) + b"d")
    assert page_digests(short).differing(page_digests(longer)) == [range(1)]


def test_runs_of_data_that_are_smaller_than_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As file systems with blocks of 1 KiB have them: two in one page are still one page, with what lies between."""
    path = sparse(tmp_path / "memory", 4 * PAGE_BYTES, {1024: b"a" * 1024, 3072: b"b" * 1024, 9000: b"c"})
    expected, whole = page_digests(path), hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(extents, "map_data", lambda fd: iter([(1024, 2048), (3072, 4096), (8192, 9216)]))
    assert page_digests(path) == expected
    assert fingerprint(path).sha256 == whole


def test_nothing_is_kept_of_holes_and_zeros(tmp_path: Path) -> None:
    path = sparse(tmp_path / "memory", 1024 * MIB, {3 * MIB: bytes(MIB), 700 * MIB: b"x"})
    assert page_digests(path).chunks.keys() == {700}
    assert page_digests(path).differing(PageDigests()) == [range(700 * MIB // PAGE_BYTES, 700 * MIB // PAGE_BYTES + 1)]
