"""Capture a stopped VMM into a directory of work in progress: device state, disk, and memory last of all.

Memory is made by ``memory.py`` from what the VMM maps, or by the VMM itself.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ramet import helpers
from ramet.errors import HostError, UnsupportedError, VmmError, host_errors
from ramet.hypervisors import ownership
from ramet.hypervisors.base import SavesDeviceState, SavesMemory
from ramet.linux import foreign, leases, procfs
from ramet.linux.extents import count_extents
from ramet.model import PAGE_BYTES, Method, SnapshotFile, VmmProcess
from ramet.paths import InstancePaths, SnapshotPaths
from ramet.snapshots.dirty import reading
from ramet.snapshots.memory import Begun, OpenCopyInRam, begin, finish
from ramet.snapshots.scatter import Scatter
from ramet.store.derive import ANY_METHOD, derive

log = logging.getLogger(__name__)

DIG_S = 600.0
DEVICE_STATE_MAX_BYTES = 64 * 1024 * 1024
"""It takes some kilobytes: without RAM, and without video memory, which these machines have not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """What a capture wrote, for the manifest."""

    memory: SnapshotFile
    vmstate: SnapshotFile
    disk: SnapshotFile
    dirty: tuple[tuple[int, int], ...] | None
    """(start, end) of what was written onto the base's memory, in bytes of the file; None if the VMM alone knows."""


def capture(
    monitor: SavesDeviceState,
    vmm: VmmProcess,
    *,
    live: InstancePaths,
    mapped_file: Path,
    into: SnapshotPaths,
    base_is_empty: bool,
    scatter: Scatter,
    copy_in_ram: OpenCopyInRam | None = None,
    begun: Begun | None = None,
) -> Captured:
    """Capture a VMM whose vCPUs are stopped. ``base_is_empty``: it booted, so the mapped file is all hole. ``copy_in_ram``: what
    the mapped file is. ``begun``: its memory file, in ``into``, if that was begun while the guest ran.

    On failure nothing of the VM has changed and ``into`` may hold partial files, for the caller to discard.

    Raises:
        HostError: for errors of the host (NoSpaceError for a full disk).
        VmmError: if the VMM refused or is not mapped as expected.
    """
    vmstate = _capture_device_state(monitor, live.vmstate, into.vmstate)
    disk_method = derive(live.disk, into.disk, allow=ANY_METHOD)
    disk = SnapshotFile(size_bytes=into.disk.stat().st_size, method=disk_method)
    if begun is None:
        begun = begin(vmm, mapped_file=mapped_file, into=into.memory, scatter=scatter, copy_in_ram=copy_in_ram)
    memory, dirty = finish(vmm, begun, mapped_file=mapped_file, base_is_empty=base_is_empty, scatter=scatter)
    return Captured(memory=memory, vmstate=vmstate, disk=disk, dirty=dirty)


def capture_by_vmm(
    monitor: SavesMemory,
    vmm: VmmProcess,
    *,
    live: InstancePaths,
    base: Path | None,
    size_bytes: int,
    diff: bool,
    into: SnapshotPaths,
    before_request: Callable[[], object],
    scatter: Scatter,
) -> Captured:
    """Let a VMM whose vCPUs are stopped write its memory itself: a diff onto a derivation of ``base`` (None: onto one hole),
    never onto the base, or all of it. What it wrote moves into ``into`` once it holds no descriptor of it any more (H68).

    ``before_request`` is called last of all: from then on the VMM's dirty pages may be lost with the files.

    Raises:
        HostError: for errors of the host (NoSpaceError for a full disk).
        VmmError: if the VMM refused.
    """
    _remove_leftovers(live)
    try:
        disk_method = derive(live.disk, into.disk, allow=ANY_METHOD)
        if base is not None:
            method: Method | None = derive(base, live.next_memory, allow=scatter.how_to_derive(base, 0))
        else:
            method = None
            _make_hole(live.next_memory, size_bytes)
        with host_errors(f"give the VMM {live.next_memory}"):
            ownership.give_like(live.next_memory, live.work)
        before_request()
        with reading(vmm):
            before_bytes = procfs.bytes_written(vmm.pid)
        monitor.create_snapshot(
            vmstate=f"{live.work.name}/{live.vmstate.name}",
            memory=f"{live.work.name}/{live.next_memory.name}",
            diff=diff,
        )
        with host_errors(f"take over what the VMM wrote to {live.work}"):
            written_bytes = procfs.bytes_written(vmm.pid) - before_bytes
            state = _device_state(live.vmstate)
            into.vmstate.write_bytes(state)
            live.next_memory.rename(into.memory)  # out of its reach; what it holds is seen there
            _require_let_go(vmm, into.memory)
            found = into.memory.stat().st_size
        if not diff:
            _dig_holes(into.memory)
        if found != size_bytes or not state:
            raise VmmError(f"The VMM wrote {found} bytes of memory where {size_bytes} are, and {len(state)} of state.")
    finally:
        _remove_leftovers(live)
    return Captured(
        memory=SnapshotFile(
            size_bytes=size_bytes,
            method=method,
            written_bytes=_pages_of(written_bytes - len(state)),
            pieces=scatter.after(method, _pieces_more_than(base, into.memory) if base is not None else 0),
        ),
        vmstate=_described(state),
        disk=SnapshotFile(size_bytes=into.disk.stat().st_size, method=disk_method),
        dirty=None,
    )


def _pieces_more_than(base: Path, path: Path) -> int:
    """How many extents a VMM has added to what was derived from ``base``; none where the file system cannot tell."""
    counts = []
    for one in (base, path):
        with host_errors(f"count the extents of {one}"), one.open("rb") as stream:
            try:
                counts.append(count_extents(stream.fileno()))
            except OSError as err:
                if err.errno in (errno.EOPNOTSUPP, errno.ENOTTY):
                    return 0
                raise
    return max(counts[1] - counts[0], 0)


def _dig_holes(path: Path) -> None:
    """Give back the pages of zeros of a memory file that was written whole; where that fails it only takes more room."""
    try:
        helpers.run(
            [helpers.find_program("fallocate", package="util-linux"), "--dig-holes", str(path)], timeout_s=DIG_S
        )
    except (HostError, UnsupportedError) as err:
        log.warning("%s keeps its pages of zeros: %s", path, err)


def _pages_of(size_bytes: int) -> int:
    """What of it are whole pages: the rest is what the VMM has logged."""
    return size_bytes // PAGE_BYTES * PAGE_BYTES


def _remove_leftovers(live: InstancePaths) -> None:
    with host_errors(f"clear {live.work}"):
        live.next_memory.unlink(missing_ok=True)
        live.vmstate.unlink(missing_ok=True)


def _make_hole(path: Path, size_bytes: int) -> None:
    with host_errors(f"make the memory file {path}"), path.open("xb") as stream:
        os.fchmod(stream.fileno(), 0o600)
        stream.truncate(size_bytes)


def _require_let_go(vmm: VmmProcess, path: Path) -> None:
    """Make a file that a VMM has written ours, for good: no second name, and nobody who holds it open for writing.

    Raises:
        VmmError: if it is not.
    """
    holding = [one.fd for one in procfs.descriptors_of_file(vmm.pid, path)]
    if holding or procfs.mappings_of_file(vmm.pid, path):
        raise VmmError(f"The VMM (process {vmm.pid}) keeps {path} open or mapped: it cannot be published.")
    fd = foreign.open_regular(path)
    try:
        if os.fstat(fd).st_nlink != 1:
            raise VmmError(f"{path} has a second name: what has it could change what is published.")
        os.fchown(fd, os.geteuid(), os.getegid())
        os.fchmod(fd, 0o600)
        if not leases.nobody_writes(fd):
            raise VmmError(f"Somebody still holds {path} open for writing: it cannot be published.")
    finally:
        os.close(fd)


def _device_state(path: Path) -> bytes:
    """What a VMM wrote in its own directory.

    Raises:
        VmmError: if that is no device state: too large, or no file.
    """
    try:
        return foreign.read_whole(path, limit=DEVICE_STATE_MAX_BYTES)
    except OSError as err:
        if err.errno in (errno.EFBIG, errno.EINVAL, errno.ELOOP):
            raise VmmError(f"What the VMM wrote to {path} is no device state: {err.strerror}.") from err
        raise


def _capture_device_state(monitor: SavesDeviceState, written_by_vmm: Path, into: Path) -> SnapshotFile:
    """The VMM writes under its own ``work/``; what is published is a copy that it has never had open (H68)."""
    with host_errors(f"save the device state to {into}"):
        written_by_vmm.unlink(missing_ok=True)
        try:
            monitor.save_device_state(written_by_vmm)
            state = _device_state(written_by_vmm)
        finally:
            written_by_vmm.unlink(missing_ok=True)
        if not state:
            raise VmmError("The VMM wrote an empty device state.")
        into.write_bytes(state)
    return _described(state)


def _described(state: bytes) -> SnapshotFile:
    return SnapshotFile(size_bytes=len(state), written_bytes=len(state), sha256=hashlib.sha256(state).hexdigest())
