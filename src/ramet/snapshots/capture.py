"""Capture a stopped VMM into a directory of work in progress: device state, disk, and memory last of all.

Memory is the derived mapped file plus the dirty pages. The dirty pages are the private anonymous pages of the VMM's mapping
of that file (pagemap(5)), found by the mapping's inode, read through /proc/PID/mem.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ramet import process
from ramet.errors import HostError, UnsupportedError, VmmDiedError, VmmError, host_errors
from ramet.hypervisors import ownership
from ramet.hypervisors.base import SavesDeviceState, SavesMemory
from ramet.linux import foreign, leases, procfs, procmem, whole
from ramet.linux.extents import count_extents, map_data
from ramet.linux.pagemap import written_regions
from ramet.model import PAGE_BYTES, Method, SnapshotFile, VmmProcess
from ramet.paths import InstancePaths, SnapshotPaths
from ramet.snapshots.scatter import Scatter
from ramet.store.derive import ANY_METHOD, REFLINK_ONLY, copy_of, derive

log = logging.getLogger(__name__)

BUFFER_BYTES = 1024 * 1024
DIG_S = 600.0
DEVICE_STATE_MAX_BYTES = 64 * 1024 * 1024
"""It takes some kilobytes: without RAM, and without video memory, which these machines have not."""
COPY_THREADS = min(os.cpu_count() or 1, 4)
ZERO_PAGE = bytes(PAGE_BYTES)
WORDS_PER_PAGE = PAGE_BYTES // 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """What a capture wrote, for the manifest."""

    memory: SnapshotFile
    vmstate: SnapshotFile
    disk: SnapshotFile
    dirty: tuple[tuple[int, int], ...] | None
    """(start, end) of what was written onto the base's memory, in bytes of the file; None if the VMM alone knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedCopy:
    """A sealed copy in RAM that a VMM maps."""

    fd: int
    same: Path | None
    """The published file that it is a copy of, and that can be cloned, where nobody has written it since."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _DirtyRun:
    address: int
    file_offset: int
    length: int


def capture(
    monitor: SavesDeviceState,
    vmm: VmmProcess,
    *,
    live: InstancePaths,
    mapped_file: Path,
    into: SnapshotPaths,
    base_is_empty: bool,
    scatter: Scatter,
    template: SharedCopy | None = None,
) -> Captured:
    """Capture a VMM whose vCPUs are stopped. ``base_is_empty``: it booted, so the mapped file is all hole. ``template``: what the
    mapped file is.

    On failure nothing of the VM has changed and ``into`` may hold partial files, for the caller to discard.

    Raises:
        HostError: for errors of the host (NoSpaceError for a full disk).
        VmmError: if the VMM refused or is not mapped as expected.
    """
    vmstate = _capture_device_state(monitor, live.vmstate, into.vmstate)
    disk_method = derive(live.disk, into.disk, allow=ANY_METHOD)
    disk = SnapshotFile(size_bytes=into.disk.stat().st_size, method=disk_method)
    memory, dirty = capture_memory(
        vmm, mapped_file=mapped_file, into=into.memory, base_is_empty=base_is_empty, scatter=scatter, template=template
    )
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
        with _reading(vmm):
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
        process.run(
            [process.find_program("fallocate", package="util-linux"), "--dig-holes", str(path)], timeout_s=DIG_S
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


def capture_memory(
    vmm: VmmProcess,
    *,
    mapped_file: Path,
    into: Path,
    base_is_empty: bool,
    scatter: Scatter,
    template: SharedCopy | None = None,
) -> tuple[SnapshotFile, tuple[tuple[int, int], ...]]:
    """Write a complete memory file to ``into``: the mapped file's bytes with the VMM's dirty pages over them; returns also where
    in the file those are.

    The mapped file is only read. Pages of zeros are left holes if the base is one hole, and written if it is not (H10).

    Raises:
        HostError: for errors of the host.
        VmmError: if the VMM does not map that file privately, or ended meanwhile (VmmDiedError).
    """
    runs = find_dirty(vmm, mapped_file)
    allow = scatter.how_to_derive(mapped_file, len(runs))
    method = derive(mapped_file, into, allow=allow) if template is None else _derive_shared(template, into, allow)
    with host_errors(f"write guest memory to {into}"):
        dst_fd = os.open(into, os.O_WRONLY | os.O_CLOEXEC)
        try:
            base_is_hole = next(map_data(dst_fd), None) is None
            written = _copy_runs(vmm, runs, dst_fd, skip_zeros=base_is_hole)
        finally:
            os.close(dst_fd)
    file = SnapshotFile(
        size_bytes=into.stat().st_size,
        method=None if base_is_empty else method,
        written_bytes=written,
        pieces=scatter.after(method, len(runs)) if not base_is_empty else 0,
    )
    return file, tuple((run.file_offset, run.file_offset + run.length) for run in runs)


def _derive_shared(template: SharedCopy, into: Path, allow: frozenset[Method]) -> Method:
    """What the guest has is in RAM: the published file counts only where no byte need be read of it."""
    if template.same is not None and Method.REFLINK in allow:
        with suppress(UnsupportedError):
            return derive(template.same, into, allow=REFLINK_ONLY)
    return copy_of(template.fd, into)


def find_dirty(vmm: VmmProcess, mapped_file: Path) -> list[_DirtyRun]:
    """The pages that the guest wrote since the VMM mapped ``mapped_file``, as runs in address order.

    Raises:
        VmmError: if the file is not mapped, not privately, or not every byte of it once.
        VmmDiedError: if the VMM has ended, or ended while we looked: it would seem to have written nothing.
    """
    with host_errors(f"read {mapped_file}"):
        size = mapped_file.stat().st_size
    if not process.is_alive(vmm):
        raise VmmDiedError(f"The VMM (process {vmm.pid}) is gone.")
    with _reading(vmm):
        mappings = procfs.mappings_of_file(vmm.pid, mapped_file)
    if any("s" in mapping.perms for mapping in mappings):
        raise VmmError(f"Process {vmm.pid} maps {mapped_file} shared: the guest writes into that file (H06).")
    _require_whole(vmm, mappings, mapped_file, size)
    with _reading(vmm):
        runs = [
            _DirtyRun(
                address=region.start,
                file_offset=mapping.offset + region.start - mapping.start,
                length=region.end - region.start,
            )
            for mapping in mappings
            for region in written_regions(vmm.pid, mapping.start, mapping.end)
        ]
        after = procfs.mappings_of_file(vmm.pid, mapped_file)
    if after != mappings:
        raise VmmDiedError(
            f"The VMM (process {vmm.pid}) ended, or changed its mappings, while its memory was examined."
        )
    return runs


def _require_whole(vmm: VmmProcess, mappings: Sequence[procfs.Mapping], mapped_file: Path, size: int) -> None:
    """Each byte of the file in exactly one mapping: a VMM may have several, above and below its PCI hole (H13)."""
    end = 0
    for mapping in sorted(mappings, key=lambda mapping: mapping.offset):
        if mapping.offset != end:
            break
        end += mapping.end - mapping.start
    else:
        if end >= size:
            return
    raise VmmError(
        f"Process {vmm.pid} does not map each of the {size} bytes of {mapped_file} once ({len(mappings)} mappings, "
        f"whole up to byte {end}): its memory cannot be captured."
    )


@contextmanager
def _reading(vmm: VmmProcess) -> Iterator[None]:
    """Translate what /proc/PID answers: not allowed, gone, or something else."""
    try:
        yield
    except OSError as err:
        if not process.is_alive(vmm):  # asked first: who is not root gets EACCES for a zombie
            raise VmmDiedError(f"The VMM (process {vmm.pid}) ended while its memory was read.") from err
        if isinstance(err, PermissionError):
            raise HostError(
                f"The kernel does not let us read the memory of process {vmm.pid}.",
                hint="`ramet doctor` says what is missing (ptrace scope, or another user's VMM).",
            ) from err
        raise HostError(f"Could not read the memory of process {vmm.pid}: {err.strerror}.") from err


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


def _copy_runs(vmm: VmmProcess, runs: Sequence[_DirtyRun], dst_fd: int, *, skip_zeros: bool) -> int:
    """Copy what is dirty, in threads: reading another process's memory takes longer than writing it to the page cache."""
    chunks = deque(chunk for run in runs for chunk in _chunks(run))
    with _reading(vmm):
        memory_fd = procmem.open_memory(vmm.pid)

    def work() -> int:
        buffer = memoryview(bytearray(BUFFER_BYTES))
        written = 0
        try:
            while chunks:
                try:
                    chunk = chunks.popleft()
                except IndexError:
                    break  # another thread was quicker
                written += _copy_chunk(vmm, memory_fd, chunk, buffer, dst_fd, skip_zeros=skip_zeros)
        except BaseException:
            chunks.clear()  # what the other threads do is in vain
            raise
        return written

    try:
        with ThreadPoolExecutor(COPY_THREADS) as pool:
            try:
                return sum(pool.map(lambda _: work(), range(min(COPY_THREADS, len(chunks)))))
            except BaseException:
                chunks.clear()  # Ctrl-C, which this thread alone hears: the others are not to be waited for
                raise
    finally:
        os.close(memory_fd)


def _chunks(run: _DirtyRun) -> Iterator[_DirtyRun]:
    for start in range(0, run.length, BUFFER_BYTES):
        length = min(BUFFER_BYTES, run.length - start)
        yield _DirtyRun(address=run.address + start, file_offset=run.file_offset + start, length=length)


def _copy_chunk(
    vmm: VmmProcess, memory_fd: int, chunk: _DirtyRun, buffer: memoryview, dst_fd: int, *, skip_zeros: bool
) -> int:
    data = buffer[: chunk.length]
    with _reading(vmm):
        procmem.read_into(memory_fd, chunk.address, data)
    pieces = _nonzero_pieces(data) if skip_zeros else [(0, len(data))]
    for low, high in pieces:
        whole.pwrite(dst_fd, data[low:high], chunk.file_offset + low)
    return sum(high - low for low, high in pieces)


def _nonzero_pieces(chunk: memoryview) -> list[tuple[int, int]]:
    """Ranges of ``chunk`` without its pages of zeros, joined."""
    pieces: list[tuple[int, int]] = []
    low = 0
    # The first word of a page tells nearly all that are not zeros; a page is compared whole only where that is 0.
    for page, word in enumerate(chunk.cast("Q")[::WORDS_PER_PAGE].tolist()):
        offset = page * PAGE_BYTES
        if word == 0 and bytes(chunk[offset : offset + PAGE_BYTES]) == ZERO_PAGE:
            if low < offset:
                pieces.append((low, offset))
            low = offset + PAGE_BYTES
    if low < len(chunk):
        pieces.append((low, len(chunk)))
    return pieces
