"""What a block device has read and written, as the kernel counts it (Documentation/block/stat.rst)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ramet.errors import host_errors

SYSFS = Path("/sys/dev/block")
SECTOR_BYTES = 512
READ_FIELD, WRITTEN_FIELD = 2, 6
IOSTATS = "queue/iostats"


@dataclass(frozen=True, slots=True)
class Device:
    """The block device that a file system is on, whoever else uses it."""

    stat: Path

    def read_bytes(self) -> float:
        """All that it has read since it is there."""
        return self._bytes(READ_FIELD)

    def written_bytes(self) -> float:
        """All that it was given to write since it is there."""
        return self._bytes(WRITTEN_FIELD)

    def _bytes(self, field: int) -> float:
        with host_errors(f"read {self.stat}"):
            return float(self.stat.read_text().split()[field]) * SECTOR_BYTES


def device_of(place: Path) -> Device | None:
    """The device of the file system of ``place``; None if that is on no block device of its own, as a btrfs or a tmpfs is, or on
    one that does not count (its ``queue/iostats`` is 0): what it has read and written would seem to be nothing.
    """
    with host_errors(f"look at {place}"):
        number = place.stat().st_dev
        one = (SYSFS / f"{os.major(number)}:{os.minor(number)}").resolve()
        stat = one / "stat"
        if not stat.exists():
            return None
        # A partition has no queue: that of its disk is above it.
        counts = next((path for path in (one / IOSTATS, one.parent / IOSTATS) if path.exists()), None)
        return Device(stat) if counts is not None and counts.read_text().strip() != "0" else None
