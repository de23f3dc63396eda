"""What a device has read and written: counted by the kernel, or said to be unknown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ramet.bench import device

STAT = "  10 0 16 0  20 0 4096 0  0 0 0\n"


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a disk in sysfs, which the store is on."""
    made = tmp_path / "devices" / "vda"
    (made / "queue").mkdir(parents=True)
    (made / "stat").write_text(STAT)
    (made / "queue/iostats").write_text("1\n")
    monkeypatch.setattr(device, "SYSFS", tmp_path)
    _is_on(tmp_path, made)
    return made


def _is_on(store: Path, one: Path) -> None:
    number = store.stat().st_dev
    link = store / f"{os.major(number)}:{os.minor(number)}"
    link.unlink(missing_ok=True)
    link.symlink_to(one)


def test_what_a_disk_has_read_and_written(tmp_path: Path, disk: Path) -> None:
    found = device.device_of(tmp_path)
    assert found is not None
    assert (found.read_bytes(), found.written_bytes()) == (16 * 512, 4096 * 512)


def test_a_partition_is_counted_where_its_disk_is(tmp_path: Path, disk: Path) -> None:
    part = disk / "vda1"
    part.mkdir()
    (part / "stat").write_text(STAT)
    _is_on(tmp_path, part)
    assert device.device_of(tmp_path) is not None
    (disk / "queue/iostats").write_text("0\n")
    assert device.device_of(tmp_path) is None


def test_a_device_that_does_not_count_is_none(tmp_path: Path, disk: Path) -> None:
    """Nothing read and nothing written would reach every target."""
    (disk / "queue/iostats").write_text("0\n")
    assert device.device_of(tmp_path) is None


def test_a_file_system_on_no_device_has_none(tmp_path: Path, disk: Path) -> None:
    (disk / "stat").unlink()
    assert device.device_of(tmp_path) is None
