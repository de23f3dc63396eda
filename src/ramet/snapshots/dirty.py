"""A VMM's dirty pages: the private anonymous pages of its mapping of a memory file (pagemap(5)). Where they are, found by the
mapping's inode, and what they hold, read through /proc/PID/mem.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ramet import process
from ramet.errors import HostError, VmmDiedError, VmmError, host_errors
from ramet.linux import procfs, procmem, whole
from ramet.linux.pagemap import written_regions
from ramet.model import PAGE_BYTES, VmmProcess
from ramet.signals import signals_held
from ramet.threads import as_they_end

BUFFER_BYTES = 1024 * 1024
COPY_THREADS = min(os.cpu_count() or 1, 4)
ZERO_PAGE = bytes(PAGE_BYTES)
WORDS_PER_PAGE = PAGE_BYTES // 8


@dataclass(frozen=True, slots=True, kw_only=True)
class DirtyRun:
    """Dirty pages in a row."""

    address: int
    file_offset: int
    length: int


def find_dirty(vmm: VmmProcess, mapped_file: Path, *, since_cleared: bool = False) -> list[DirtyRun]:
    """The pages that the guest wrote since the VMM mapped ``mapped_file``, in address order; ``since_cleared``: only those that
    it wrote since its soft-dirty bits were cleared. Of a guest that runs, as they are at some moment of the call.

    Raises:
        VmmError: if the file is not mapped, not privately, or not every byte of it once.
        VmmDiedError: if the VMM has ended, or ended while we looked: it would seem to have written nothing.
    """
    with host_errors(f"read {mapped_file}"):
        size = mapped_file.stat().st_size
    if not process.is_alive(vmm):
        raise VmmDiedError(f"The VMM (process {vmm.pid}) is gone.")
    with reading(vmm):
        mappings = procfs.mappings_of_file(vmm.pid, mapped_file)
    if any("s" in mapping.perms for mapping in mappings):
        raise VmmError(f"Process {vmm.pid} maps {mapped_file} shared: the guest writes into that file (H06).")
    _require_whole(vmm, mappings, mapped_file, size)
    with reading(vmm):
        runs = [
            DirtyRun(
                address=region.start,
                file_offset=mapping.offset + region.start - mapping.start,
                length=region.end - region.start,
            )
            for mapping in mappings
            for region in written_regions(vmm.pid, mapping.start, mapping.end, since_cleared=since_cleared)
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
def reading(vmm: VmmProcess) -> Iterator[None]:
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


def copy_runs(vmm: VmmProcess, runs: Sequence[DirtyRun], dst_fd: int, *, skip_zeros: bool) -> int:
    """Copy what is dirty, in threads: reading another process's memory takes longer than writing it to the page cache."""
    chunks = deque(chunk for run in runs for chunk in _chunks(run))
    with reading(vmm):
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
                with signals_held():  # a thread that is half begun is nobody's
                    begun = [pool.submit(work) for _ in range(min(COPY_THREADS, len(chunks)))]
                return sum(ended.result() for ended in as_they_end(begun))
            except BaseException:
                with signals_held():  # one that ends a join has Python take the thread for ended, and it writes on
                    chunks.clear()  # what the others do is in vain
                    pool.shutdown()
                raise
    finally:
        os.close(memory_fd)


def _chunks(run: DirtyRun) -> Iterator[DirtyRun]:
    for start in range(0, run.length, BUFFER_BYTES):
        length = min(BUFFER_BYTES, run.length - start)
        yield DirtyRun(address=run.address + start, file_offset=run.file_offset + start, length=length)


def _copy_chunk(
    vmm: VmmProcess, memory_fd: int, chunk: DirtyRun, buffer: memoryview, dst_fd: int, *, skip_zeros: bool
) -> int:
    data = buffer[: chunk.length]
    with reading(vmm):
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


def minus(runs: Sequence[DirtyRun], others: Sequence[DirtyRun]) -> list[DirtyRun]:
    """What of ``runs`` is in none of ``others``, both in address order."""
    left: list[DirtyRun] = []
    index = 0
    for run in runs:
        low, end = run.address, run.address + run.length
        while index < len(others) and others[index].address + others[index].length <= low:
            index += 1
        at = index
        while low < end and at < len(others) and others[at].address < end:
            if low < others[at].address:
                left.append(_part(run, low, others[at].address))
            low = max(low, others[at].address + others[at].length)
            at += 1
        if low < end:
            left.append(_part(run, low, end))
    return left


def union(runs: Sequence[DirtyRun], others: Sequence[DirtyRun]) -> list[DirtyRun]:
    """What is in any of them, in address order."""
    return sorted([*runs, *minus(others, runs)], key=lambda run: run.address)


def size_of(runs: Sequence[DirtyRun]) -> int:
    """In bytes."""
    return sum(run.length for run in runs)


def _part(run: DirtyRun, start: int, end: int) -> DirtyRun:
    return DirtyRun(address=start, file_offset=run.file_offset + start - run.address, length=end - start)
