"""A memory file of a VM: the mapped file, derived, with the VMM's dirty pages over it. All of it while the guest is stopped, or
begun while it runs.

A guest need not be stopped for what does not change meanwhile. So the file is derived, and the dirty pages are copied, before;
the kernel notes which are written from then on (``linux/soft_dirty.py``), and those are copied again in the pause. A page that is
written while it is copied is among them: the bits were cleared before. They are cleared once: for a second round they would have
to be read and cleared with nothing written in between, and a QEMU whose vCPUs are stopped is not stopped itself.

Where the kernel has no such bits, the mapped file is derived before, and the dirty pages are copied in the pause.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ramet.errors import UnsupportedError, host_errors
from ramet.linux import soft_dirty
from ramet.linux.extents import map_data
from ramet.model import MIB, Method, SnapshotFile, VmmProcess
from ramet.snapshots.dirty import DirtyRun, copy_runs, find_dirty, minus, reading, size_of, union
from ramet.snapshots.scatter import Scatter
from ramet.store.derive import REFLINK_ONLY, copy_of, derive

log = logging.getLogger(__name__)

AHEAD_MIN_BYTES = 32 * MIB
"""Of dirty pages: fewer are copied in a pause of some 10 ms, and every page that is noted costs the guest a fault."""

Regions = tuple[tuple[int, int], ...]
"""(start, end) in bytes of the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenCopyInRam:
    """A copy in RAM that a VMM maps, by a descriptor of our own."""

    fd: int
    same: Path | None
    """The published file that it is a copy of, and that can be cloned, where nobody has written it since."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A memory file that is derived, and may hold dirty pages already."""

    into: Path
    method: Method
    base_is_hole: bool
    found: Sequence[DirtyRun] | None
    """The dirty pages, if the guest was stopped: they are still those."""
    copied: Sequence[DirtyRun] | None
    """Those that were copied while it ran, and whose later changes the kernel notes; None: none was."""
    written_bytes: int


def begin(
    vmm: VmmProcess,
    *,
    mapped_file: Path,
    into: Path,
    scatter: Scatter,
    copy_in_ram: OpenCopyInRam | None = None,
    guest_runs: bool = False,
) -> Begun:
    """Derive the mapped file, which is only read, as ``into``. Of a guest that runs, the dirty pages are copied too, if the
    kernel can tell what is written from then on.

    Raises:
        HostError, VmmError: as ``finish``.
    """
    runs = find_dirty(vmm, mapped_file)
    allow = scatter.how_to_derive(mapped_file, len(runs))
    method = derive(mapped_file, into, allow=allow) if copy_in_ram is None else _derive_shared(copy_in_ram, into, allow)
    copied: Sequence[DirtyRun] | None = None
    written_bytes = 0
    is_noted = guest_runs and size_of(runs) >= AHEAD_MIN_BYTES and _begin_to_note(vmm)
    with host_errors(f"write guest memory to {into}"), into.open("r+b", buffering=0) as stream:
        base_is_hole = next(map_data(stream.fileno()), None) is None
        if is_noted:
            copied = find_dirty(vmm, mapped_file)
            written_bytes = copy_runs(vmm, copied, stream.fileno(), skip_zeros=base_is_hole)
    return Begun(
        into=into,
        method=method,
        base_is_hole=base_is_hole,
        found=None if guest_runs else runs,
        copied=copied,
        written_bytes=written_bytes,
    )


def _begin_to_note(vmm: VmmProcess) -> bool:
    with reading(vmm):
        return soft_dirty.are_reliable() and soft_dirty.clear(vmm.pid)


def finish(
    vmm: VmmProcess, begun: Begun, *, mapped_file: Path, base_is_empty: bool, scatter: Scatter
) -> tuple[SnapshotFile, Regions]:
    """Write all that is still to be written of a VMM whose vCPUs are stopped; returns also where in the file dirty pages are.

    Pages of zeros are left holes if the base is one hole, and written if it is not, or if something else may be there (H10).

    Raises:
        HostError: for errors of the host.
        VmmError: if the VMM does not map that file privately, or ended meanwhile (VmmDiedError).
    """
    runs = find_dirty(vmm, mapped_file) if begun.found is None else begun.found
    new, again = _still_to_copy(vmm, begun, runs, mapped_file)
    with host_errors(f"write guest memory to {begun.into}"), begun.into.open("r+b", buffering=0) as stream:
        written_bytes = begun.written_bytes + copy_runs(vmm, new, stream.fileno(), skip_zeros=begun.base_is_hole)
        copy_runs(vmm, again, stream.fileno(), skip_zeros=False)
    log.debug("copied %d bytes ahead, %d in the pause", size_of(begun.copied or ()), size_of(new) + size_of(again))
    file = SnapshotFile(
        size_bytes=begun.into.stat().st_size,
        method=None if base_is_empty else begun.method,
        written_bytes=written_bytes,
        pieces=scatter.after(begun.method, len(runs)) if not base_is_empty else 0,
    )
    dirty = runs if begun.copied is None else union(runs, begun.copied)
    return file, tuple((run.file_offset, run.file_offset + run.length) for run in dirty)


def _still_to_copy(
    vmm: VmmProcess, begun: Begun, runs: Sequence[DirtyRun], mapped_file: Path
) -> tuple[Sequence[DirtyRun], Sequence[DirtyRun]]:
    """Pages that were not copied yet, and those that were, and are now others."""
    if begun.copied is None:
        return runs, ()
    new = minus(runs, begun.copied)
    if not soft_dirty.are_reliable():  # no more
        return new, begun.copied
    changed = minus(find_dirty(vmm, mapped_file, since_cleared=True), new)
    gone = minus(begun.copied, runs)  # the file's own bytes are there again
    return new, union(changed, gone)


def _derive_shared(copy_in_ram: OpenCopyInRam, into: Path, allow: frozenset[Method]) -> Method:
    """What the guest has is in RAM: the published file counts only where no byte need be read of it."""
    if copy_in_ram.same is not None and Method.REFLINK in allow:
        with suppress(UnsupportedError):
            return derive(copy_in_ram.same, into, allow=REFLINK_ONLY)
    return copy_of(copy_in_ram.fd, into)
