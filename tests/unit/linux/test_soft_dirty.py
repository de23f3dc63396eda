"""Soft-dirty bits: whether they are there is found by looking, and those of a process that is gone are nobody's."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import pytest

from ramet.linux import pagemap, soft_dirty
from ramet.linux.pagemap import Region
from tests.unit.children import holding

PAGE = 4096
CONFIGS = [path for path in (Path("/proc/config.gz"), Path(f"/boot/config-{os.uname().release}")) if path.exists()]
PRESENT, SWAPPED, FILE, SOFT = 1 << 63, 1 << 62, 1 << 61, 1 << 55


@pytest.mark.skipif(not CONFIGS, reason="this kernel does not say what it was built with")
def test_they_are_there_if_the_kernel_was_built_with_them() -> None:
    soft_dirty.is_there.cache_clear()
    config = gzip.decompress(CONFIGS[0].read_bytes()) if CONFIGS[0].suffix == ".gz" else CONFIGS[0].read_bytes()
    assert soft_dirty.is_there() is (b"CONFIG_MEM_SOFT_DIRTY=y" in config)
    if not soft_dirty.is_there():
        assert not soft_dirty.clear(os.getpid()), "nothing would be noted"


@pytest.mark.parametrize(("run", "reliable"), [("0", True), ("1", False), ("2", False), (None, True)])
def test_they_are_not_relied_on_while_ksm_runs(
    run: str | None, reliable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It replaces entries of pages by ones without the bit."""
    monkeypatch.setattr(soft_dirty, "is_there", lambda: True)
    monkeypatch.setattr(soft_dirty, "KSM_RUN", tmp_path / "run")
    if run is not None:
        (tmp_path / "run").write_text(f"{run}\n")
    assert soft_dirty.are_reliable() is reliable


def test_those_of_a_process_that_is_gone_or_not_ours_are_not_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soft_dirty, "is_there", lambda: True)
    with holding(lambda ready: ready()) as pid:
        assert soft_dirty.clear(pid)
    assert not soft_dirty.clear(pid)
    monkeypatch.setattr(os, "open", refused)
    assert not soft_dirty.clear(os.getpid())


def refused(*_: object) -> int:
    raise PermissionError(13, "Permission denied")


def test_what_was_written_since_is_read_where_the_kernel_can_scan_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan would give all that was ever written."""
    monkeypatch.setattr(pagemap, "has_pagemap_scan", lambda: True)
    monkeypatch.setattr(pagemap, "scan_pagemap", refused)
    monkeypatch.setattr(
        pagemap, "_read_entries", lambda _fd, _first, count: struct.pack(f"={count}Q", *[PRESENT] * count)
    )
    assert pagemap.written_regions(os.getpid(), 0, 4 * PAGE, since_cleared=True) == []


def test_what_was_written_since_is_what_has_the_bit_and_is_the_process_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [
        PRESENT | SOFT,
        PRESENT,
        SWAPPED | SOFT,
        PRESENT | FILE | SOFT,
        SOFT,
        PRESENT | SOFT,
        PRESENT | SOFT | (0x7FFFFF),
        PRESENT | (1 << 56),
    ]
    monkeypatch.setattr(
        pagemap, "_read_entries", lambda _fd, first, count: struct.pack(f"={count}Q", *entries[first : first + count])
    )

    def found(*, since_cleared: bool) -> list[Region]:
        return pagemap.written_regions(
            os.getpid(), 0, len(entries) * PAGE, since_cleared=since_cleared, method="pagemap"
        )

    assert found(since_cleared=True) == [Region(0, PAGE), Region(2 * PAGE, 3 * PAGE), Region(5 * PAGE, 7 * PAGE)]
    assert found(since_cleared=False) == [Region(0, 3 * PAGE), Region(5 * PAGE, 8 * PAGE)]
