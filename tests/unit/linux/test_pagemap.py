"""The written pages of a private file mapping: both methods, with the same answer."""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ramet.linux import pagemap
from ramet.linux.pagemap import PAGE_BYTES, Method, Region
from tests.capabilities import requires
from tests.unit.children import Mapper
from tests.unit.linux.own_mapping import OwnMapping, make_file

MADV_DONTNEED = 4
PAGES = 64

both_methods = pytest.mark.parametrize(
    "method", [pytest.param("scan", marks=requires("pagemap-scan")), pytest.param("pagemap")]
)


@pytest.fixture
def fresh_probe() -> Iterator[None]:
    """What the kernel can do is asked anew in the test and after it."""
    pagemap.has_pagemap_scan.cache_clear()
    yield
    pagemap.has_pagemap_scan.cache_clear()


@pytest.fixture
def mapped(tmp_path: Path) -> Iterator[OwnMapping]:
    """64 pages: bytes in the first half of the file, a hole in the second."""
    with OwnMapping(make_file(tmp_path / "file", PAGES, range(PAGES // 2))) as mapping:
        yield mapping


def regions_of(mapping: OwnMapping, *runs: tuple[int, int]) -> list[Region]:
    return [Region(mapping.start + low * PAGE_BYTES, mapping.start + high * PAGE_BYTES) for low, high in runs]


@both_methods
def test_nothing_is_written_at_first(mapped: OwnMapping, method: Method) -> None:
    assert mapped.regions(method) == []


@both_methods
def test_written_pages_are_found_and_neighbours_are_joined(mapped: OwnMapping, method: Method) -> None:
    for page in (0, 3, 4, 5, 31, 32, PAGES - 1):
        mapped.write(page)
    assert mapped.regions(method) == regions_of(mapped, (0, 1), (3, 6), (31, 33), (PAGES - 1, PAGES))


@both_methods
def test_pages_that_were_only_read_are_not(mapped: OwnMapping, method: Method) -> None:
    mapped.touch()
    assert mapped.regions(method) == []


@both_methods
def test_dirty_page_cache_is_not_the_mapping_s(tmp_path: Path, mapped: OwnMapping, method: Method) -> None:
    mapped.touch()
    with (tmp_path / "file").open(
        "r+b"
    ) as stream:  # dirty in the page cache, and mapped: smaps calls that Private_Dirty
        stream.write(b"through the file" * PAGE_BYTES)
        stream.flush()
        assert mapped.bytes[:16] == b"through the file"
        assert mapped.regions(method) == []


@both_methods
def test_a_page_of_zeros_that_was_written_is_found(mapped: OwnMapping, method: Method) -> None:
    """Over bytes of the file, it must hide them; over a hole, finding it is harmless (H10)."""
    for page in (1, PAGES - 2):
        mapped.write(page, bytes(PAGE_BYTES))
    assert mapped.written(method) == [1, PAGES - 2]


@both_methods
def test_a_page_that_was_given_back_is_the_file_s_again(mapped: OwnMapping, method: Method) -> None:
    mapped.write(2)
    mapped.write(7)
    mapped.bytes.madvise(MADV_DONTNEED, 2 * PAGE_BYTES, PAGE_BYTES)
    assert mapped.written(method) == [7]


@both_methods
def test_only_the_asked_range_is_looked_at(mapped: OwnMapping, method: Method) -> None:
    for page in (9, 10, 11, 20):
        mapped.write(page)
    low, high = mapped.start + 10 * PAGE_BYTES, mapped.start + 20 * PAGE_BYTES
    assert pagemap.written_regions(os.getpid(), low, high, method=method) == regions_of(mapped, (10, 12))
    assert pagemap.written_regions(os.getpid(), low, low, method=method) == []


@both_methods
def test_thousands_of_scattered_regions(tmp_path: Path, method: Method) -> None:
    """More than sixteen vectors full: no region is lost, doubled or out of order where one call ends and the next begins."""
    count = 16 * 512 + 7
    with OwnMapping(make_file(tmp_path / "file", 2 * count)) as mapping:
        for page in range(0, 2 * count, 2):
            mapping.write(page)
        found = mapping.regions(method)
        assert len(found) == count
        assert all(left.end < right.start for left, right in itertools.pairwise(found))
        assert mapping.written(method) == list(range(0, 2 * count, 2))


@both_methods
def test_a_mapping_larger_than_one_chunk_of_entries(tmp_path: Path, method: Method) -> None:
    """A run across the border of two chunks is one region."""
    border = pagemap.CHUNK_ENTRIES
    with OwnMapping(make_file(tmp_path / "file", border + 1000)) as mapping:
        for page in (0, border - 2, border - 1, border, border + 999):
            mapping.write(page)
        runs = [(0, 1), (border - 2, border + 1), (border + 999, border + 1000)]
        assert mapping.regions(method) == regions_of(mapping, *runs)


@both_methods
def test_another_process(tmp_path: Path, method: Method) -> None:
    path = make_file(tmp_path / "file", PAGES, [0, 1])
    with Mapper(path) as child:
        child.read()
        child.write(5 * PAGE_BYTES + 17, b"x")
        [mapping] = [found for found in _mappings(child.pid) if found[2] == str(path)]
        start = mapping[0]
        found = pagemap.written_regions(child.pid, start, mapping[1], method=method)
        assert found == [Region(start + 5 * PAGE_BYTES, start + 6 * PAGE_BYTES)]


@both_methods
def test_a_process_that_has_ended_is_an_error_and_not_clean(tmp_path: Path, method: Method) -> None:
    """Nothing written would be the most dangerous of answers: the snapshot would silently lack all dirty pages (H12)."""
    path = make_file(tmp_path / "file", PAGES)
    with Mapper(path) as child:
        child.write(0, b"x")
        [(start, end, _)] = [found for found in _mappings(child.pid) if found[2] == str(path)]
        child.end()
        with pytest.raises((ProcessLookupError, PermissionError)):  # the latter for who is not root
            pagemap.written_regions(child.pid, start, end, method=method)


@pytest.mark.parametrize("method", get_args(Method))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    written=st.sets(st.integers(0, PAGES - 1)),
    read=st.sets(st.integers(0, PAGES - 1)),
    vector=st.sampled_from([2, 3, 512]),
)
def test_exactly_the_written_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Method, written: set[int], read: set[int], vector: int
) -> None:
    if method == "scan" and not pagemap.has_pagemap_scan():
        pytest.skip("the kernel has no PAGEMAP_SCAN")
    with OwnMapping(make_file(tmp_path / "file", PAGES, range(0, PAGES, 3))) as mapping, monkeypatch.context() as patch:
        patch.setattr(pagemap, "VECTOR_LENGTH", vector)
        patch.setattr(pagemap, "CHUNK_ENTRIES", 5 * vector)
        for page in read:
            _ = mapping.bytes[page * PAGE_BYTES]
        for page in written:
            mapping.write(page)
        assert mapping.written(method) == sorted(written)


# -- kernels without PAGEMAP_SCAN, and ones that answer nonsense -------------------------------------------------


def refusing(number: int) -> Callable[..., int]:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.usefixtures("fresh_probe")
@pytest.mark.parametrize("number", [errno.ENOTTY, errno.EINVAL])
def test_without_pagemap_scan_the_entries_are_read(
    mapped: OwnMapping, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(pagemap, "ioctl", refusing(number))
    assert not pagemap.has_pagemap_scan()
    mapped.write(6)
    assert mapped.written("auto") == [6]
    with pytest.raises(OSError, match=os.strerror(number)):
        mapped.written("scan")


@pytest.mark.usefixtures("fresh_probe")
def test_another_refusal_of_pagemap_scan_is_not_taken_for_its_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pagemap, "ioctl", refusing(errno.EPERM))
    with pytest.raises(PermissionError):
        pagemap.has_pagemap_scan()


@pytest.mark.usefixtures("fresh_probe")
@requires("pagemap-scan")
def test_auto_scans_where_it_can(mapped: OwnMapping, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pagemap, "read_pagemap", refusing(errno.EIO))
    mapped.write(6)
    assert mapped.written("auto") == [6]


def answering(regions: list[tuple[int, int]], walk_end: int) -> Callable[[int, int, bytearray], int]:
    """A kernel that puts ``regions`` into the vector and says that it walked up to ``walk_end``."""

    def answer(_fd: int, _request: int, argument: bytearray) -> int:
        fields = list(pagemap.PM_SCAN_ARG.unpack(argument))
        packed = b"".join(pagemap.PAGE_REGION.pack(low, high, 0) for low, high in regions)
        ctypes.memmove(fields[5], packed, len(packed))
        fields[4] = walk_end
        argument[:] = pagemap.PM_SCAN_ARG.pack(*fields)
        return len(regions)

    return answer


def test_regions_that_overlap_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Linux 6.18 reports them with large vectors: counted twice is as wrong as not counted."""
    monkeypatch.setattr(pagemap, "ioctl", answering([(0x1000, 0x4000), (0x3000, 0x5000)], 0x8000))
    with pytest.raises(OSError, match="reported 0x3000 after 0x4000"):
        pagemap.scan_pagemap(os.getpid(), 0x1000, 0x8000)


def test_touching_regions_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pagemap, "ioctl", answering([(0x1000, 0x3000), (0x3000, 0x5000)], 0x8000))
    assert pagemap.scan_pagemap(os.getpid(), 0x1000, 0x8000) == [Region(0x1000, 0x5000)]


@pytest.mark.timeout(10)
def test_a_walk_that_does_not_advance_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pagemap, "ioctl", answering([], 0x1000))
    with pytest.raises(OSError, match="did not advance"):
        pagemap.scan_pagemap(os.getpid(), 0x1000, 0x8000)


def test_entries_that_end_too_early_are_an_error_and_not_clean(
    mapped: OwnMapping, monkeypatch: pytest.MonkeyPatch
) -> None:
    """read(2) gives nothing for a process whose memory has gone since its page map was opened."""
    whole = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: whole(fd, 80, offset) if size == 8 * PAGES else b"")
    with pytest.raises(ProcessLookupError, match="ended while its page map was read"):
        mapped.written("pagemap")


def test_entries_that_come_in_parts_are_put_together(mapped: OwnMapping, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: whole(fd, min(size, 40), offset))
    for page in (0, 4, 5, 6, 63):
        mapped.write(page)
    assert mapped.written("pagemap") == [0, 4, 5, 6, 63]


def _mappings(pid: int) -> list[tuple[int, int, str]]:
    """Start, end and path of each mapping, without the code under test."""
    found = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, *_, path = line.split(maxsplit=5) + [""] * (len(line.split()) < 6)
        low, high = (int(edge, 16) for edge in span.split("-"))
        found.append((low, high, path))
    return found
