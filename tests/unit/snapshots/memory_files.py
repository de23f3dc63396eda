"""Memory files for tests of the capture, and the fingerprint of one that may only be read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ramet.linux.extents import map_data
from ramet.model import PAGE_BYTES, SnapshotFile, VmmProcess
from ramet.snapshots.memory import OpenCopyInRam, Regions, begin, finish
from ramet.snapshots.scatter import Scatter
from tests.unit.children import Mapper
from tests.unit.layouts import Layout, write_layout

PAGES = 64
ZEROS, ONES = bytes(PAGE_BYTES), b"1" * PAGE_BYTES


@dataclass(frozen=True)
class Fingerprint:
    """What must never change of a file that is only read."""

    ino: int
    size: int
    mtime_ns: int
    mode: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Fingerprint:
        stat = path.stat()
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return cls(ino=stat.st_ino, size=stat.st_size, mtime_ns=stat.st_mtime_ns, mode=stat.st_mode, sha256=digest)


def full_base(path: Path) -> Path:
    """A memory file without holes, each page another."""
    path.write_bytes(b"".join(bytes([page]) * PAGE_BYTES for page in range(1, PAGES + 1)))
    return path


def hole(path: Path, pages: int = PAGES) -> Path:
    """What a VMM boots with."""
    return write_layout(path, Layout(size=pages * PAGE_BYTES, data={}))


def data_pages(path: Path) -> list[int]:
    with path.open("rb") as stream:
        return [
            page for low, high in map_data(stream.fileno()) for page in range(low // PAGE_BYTES, high // PAGE_BYTES)
        ]


def capture(
    child: Mapper, base: Path, into: Path, *, base_is_empty: bool = False, pieces: int = 0, guest_waits: bool = False
) -> SnapshotFile:
    scatter = Scatter(pieces=pieces, guest_waits=guest_waits)
    return capture_memory(child.vmm, mapped_file=base, into=into, base_is_empty=base_is_empty, scatter=scatter)[0]


def capture_memory(
    vmm: VmmProcess,
    *,
    mapped_file: Path,
    into: Path,
    base_is_empty: bool,
    scatter: Scatter,
    copy_in_ram: OpenCopyInRam | None = None,
) -> tuple[SnapshotFile, Regions]:
    """A memory file of a VMM that is stopped."""
    begun = begin(vmm, mapped_file=mapped_file, into=into, scatter=scatter, copy_in_ram=copy_in_ram)
    return finish(vmm, begun, mapped_file=mapped_file, base_is_empty=base_is_empty, scatter=scatter)
