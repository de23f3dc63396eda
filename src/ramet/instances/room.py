"""How many more forks fit, from what the first one takes: nothing is guessed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ramet.errors import RoomError, host_errors
from ramet.linux import extents, memory, procfs
from ramet.model import MIB

KEPT_BYTES = 64 * MIB
"""Of memory and of disk, what is left to others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What is free, and what one more fork takes of it; 0 if it takes nothing that can be measured."""

    memory_bytes: int
    memory_each: int
    disk_bytes: int
    disk_each: int

    @property
    def fits(self) -> int | None:
        """How many more; None if nothing bounds them."""
        found = [
            max(free - KEPT_BYTES, 0) // each
            for free, each in ((self.memory_bytes, self.memory_each), (self.disk_bytes, self.disk_each))
            if each
        ]
        return min(found) if found else None

    def error(self, wanted: int, fits: int, *, hint: str) -> RoomError:
        """What is told where fewer than ``wanted`` fit, all told."""
        parts = [
            f"{each / MIB:.1f} MiB of {what} each, and {free / MIB:.0f} MiB are free"
            for what, each, free in (
                ("memory", self.memory_each, self.memory_bytes),
                ("disk", self.disk_each, self.disk_bytes),
            )
            if each
        ]
        return RoomError(
            f"There is room for {fits} of {wanted} forks: {'; '.join(parts)}.",
            hint=hint,
            fits=fits,
            wanted=wanted,
        )


def look(home: Path, files: Iterable[Path], pid: int | None) -> Room:
    """What is free now, beside a fork that has written ``files`` anew and runs in ``pid``, as the next ones will.

    Raises:
        HostError: if the host cannot be asked.
    """
    with host_errors("see how many forks fit"):
        disk = os.statvfs(home)
        return Room(
            memory_bytes=memory.available_bytes(),
            memory_each=_own_memory(pid) if pid is not None else 0,
            disk_bytes=disk.f_bavail * disk.f_frsize,
            disk_each=sum(_allocated(path) for path in files),
        )


def _own_memory(pid: int) -> int:
    """What a process has that is in no file, in RAM or in swap; 0 if it has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return procfs.own_memory_bytes(procfs.smaps_rollup(pid))
    return 0


def _allocated(path: Path) -> int:
    """What it shares with no other file, where the file system can tell."""
    with suppress(FileNotFoundError), path.open("rb") as stream:
        with suppress(OSError):
            return extents.exclusive_bytes(extents.fiemap(stream.fileno()))
        return os.fstat(stream.fileno()).st_blocks * 512
    return 0
