"""Sums: what a snapshot's memory and disk must hold, so that a flipped byte is found and told by its page.

Each 4 KiB page has a digest, each MiB one of its 256 page digests, and the file one of those: its root, which is in the manifest.
What is asleep is never hashed again: a sum file is derived from that of the base, like the file itself, and only the pages that
may differ are read, so a sleep pays for what its guest has written.

A sum file is sparse. First the page digests, 16 bytes each (XXH3, which takes a page in a quarter of a microsecond; SHA-256 would
cost a sleep as much as the copying), 4 KiB for each MiB; then the chunk digests, SHA-256, 32 bytes each. Pages of zeros have
zeros for a digest, and so do chunks of nothing else: a hole needs no sum. They find accidents; a page that was made to have the
digest of another is not one.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from xxhash import xxh3_128_digest

from ramet.errors import CorruptError, InterruptedByUserError
from ramet.linux import whole
from ramet.linux.extents import map_data
from ramet.model import MIB, PAGE_BYTES
from ramet.pages import ranges
from ramet.signals import signals_held
from ramet.threads import as_they_end

CHUNK_BYTES: Final = MIB
PAGES: Final = CHUNK_BYTES // PAGE_BYTES
DIGEST_BYTES: Final = 16
CHUNK_DIGEST_BYTES: Final = 32
BLOCK_BYTES: Final = PAGES * DIGEST_BYTES
"""The page digests of one chunk."""
THREADS: Final = min(os.cpu_count() or 1, 4)
ZEROS: Final = bytes(BLOCK_BYTES)
OF_ZEROS: Final = xxh3_128_digest(bytes(PAGE_BYTES))
NO_DIGEST: Final = bytes(DIGEST_BYTES)
NOTHING: Final = bytes(CHUNK_DIGEST_BYTES)

Item = TypeVar("Item")
Result = TypeVar("Result")
Region = tuple[int, int]
"""(start, end) of bytes in a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """Where a file is not what it was when its sums were taken."""

    pages: tuple[range, ...] = ()
    """Numbers of 4 KiB pages of the file that differ, in order."""
    unknown: tuple[range, ...] = ()
    """Pages of which nobody knows: their sums themselves are damaged."""
    unreadable: tuple[range, ...] = ()
    """Pages that the disk does not give, or whose sums it does not."""
    root_differs: bool = False
    """The chunk digests are not those of the manifest: of another snapshot, or damaged."""

    @property
    def none(self) -> bool:
        return not (self.pages or self.unknown or self.unreadable or self.root_differs)


def size_of(content_bytes: int) -> int:
    """The size of the sum file of ``content_bytes``."""
    return _chunks_of(content_bytes) * (BLOCK_BYTES + CHUNK_DIGEST_BYTES)


def update(
    content_fd: int,
    sums_fd: int,
    changed: Iterable[Region] | None,
    *,
    base_root: str | None = None,
    stop: threading.Event | None = None,
) -> str:
    """Bring sums up to date with their content, and return the root. ``changed`` covers whatever may differ from the content that
    they were taken of; None: the sum file is empty, and all of the content is new.

    ``base_root``: of the sums that are brought up to date.

    Raises:
        CorruptError: if they do not have that root, or what is to be changed in them does not fit.
        OSError: what the kernel says; the sums are of no use then.
        InterruptedByUserError: once ``stop`` is set.
    """
    size = os.fstat(content_fd).st_size
    os.ftruncate(sums_fd, size_of(size))
    if changed is not None and _root(size, _chunk_digests(sums_fd, size)) != base_root:
        raise CorruptError("The sums do not have the root that their manifest knows.")
    of_chunks = _by_chunk(map_data(content_fd) if changed is None else sorted(changed), size)
    _in_threads(partial(_update_chunk, content_fd, sums_fd, size), of_chunks.items(), stop)
    return _root(size, _chunk_digests(sums_fd, size))


def check(
    content_fd: int,
    sums_fd: int,
    root: str,
    *,
    progress: Callable[[int], object] | None = None,
) -> Damage:
    """Compare a file with its sums, and those with their root. ``progress`` is told of each number of bytes that has been read,
    by one thread at a time.

    Raises:
        OSError: if the digests of the MiBs cannot be read; a sum file that is too short counts as damaged.
    """
    size = os.fstat(content_fd).st_size
    count = _chunks_of(size)
    chunk_digests = _chunk_digests(sums_fd, size)
    of_chunks = _by_chunk(map_data(content_fd), size)
    for number in _summed(sums_fd, chunk_digests, count):  # also what is a hole now
        of_chunks.setdefault(number, [])
    telling = threading.Lock()

    def look(item: tuple[int, list[Region]]) -> tuple[int, set[int] | None, bool]:
        number, regions = item
        top = chunk_digests[number * CHUNK_DIGEST_BYTES : (number + 1) * CHUNK_DIGEST_BYTES]
        wrong, readable = None, True
        try:
            block = _read(sums_fd, BLOCK_BYTES, number * BLOCK_BYTES)
            if _digest_of_block(block) == top:
                found = bytearray(BLOCK_BYTES)
                _digest_regions(content_fd, found, number, regions)
                wrong = {page for page in range(PAGES) if _of_page(found, page) != _of_page(block, page)}
        except OSError:  # a bad sector is EIO, ENODATA, EBADMSG, EUCLEAN, …
            readable = False
        if progress is not None:
            with telling:
                progress(sum(end - start for start, end in regions))
        return number, wrong, readable

    pages: list[int] = []
    unknown: list[range] = []
    unreadable: list[range] = []
    for number, wrong, readable in _in_threads(look, sorted(of_chunks.items()), None):
        first = number * PAGES
        if wrong is None:
            (unknown if readable else unreadable).append(range(first, min(first + PAGES, -(-size // PAGE_BYTES))))
        else:
            pages += sorted(first + page for page in wrong)
    return Damage(
        pages=ranges(pages),
        unknown=tuple(unknown),
        unreadable=tuple(unreadable),
        root_differs=_root(size, chunk_digests) != root,
    )


def _summed(sums_fd: int, chunk_digests: bytes, count: int) -> Iterator[int]:
    """The chunks of which there are sums: a chunk digest, or what may be page digests."""
    for number in range(count):
        if chunk_digests[number * CHUNK_DIGEST_BYTES : (number + 1) * CHUNK_DIGEST_BYTES] != NOTHING:
            yield number
    for start, end in map_data(sums_fd):
        yield from range(start // BLOCK_BYTES, min(-(-end // BLOCK_BYTES), count))


def _update_chunk(content_fd: int, sums_fd: int, size: int, item: tuple[int, list[Region]]) -> None:
    number, regions = item
    old = _read(sums_fd, BLOCK_BYTES, number * BLOCK_BYTES)
    at = _chunks_of(size) * BLOCK_BYTES + number * CHUNK_DIGEST_BYTES
    if _digest_of_block(old) != _read(sums_fd, CHUNK_DIGEST_BYTES, at):
        raise CorruptError(f"The sums of MiB {number} do not fit together.")
    block = bytearray(old)
    _digest_regions(content_fd, block, number, regions)
    if block == old:
        return
    low, high = (
        (position - number * CHUNK_BYTES) // PAGE_BYTES * DIGEST_BYTES for position in (regions[0][0], regions[-1][1])
    )
    whole.pwrite(sums_fd, block[low:high], number * BLOCK_BYTES + low)
    whole.pwrite(sums_fd, _digest_of_block(block), at)


def _digest_regions(content_fd: int, block: bytearray, number: int, regions: Sequence[Region]) -> None:
    """Digest whole pages of one chunk into its block."""
    buffer = _buffer()
    for start, end in regions:
        data = buffer[: end - start]
        _fill(content_fd, data, start)
        digests = [xxh3_128_digest(data[at : at + PAGE_BYTES]) for at in range(0, len(data), PAGE_BYTES)]
        if OF_ZEROS in digests:
            digests = [NO_DIGEST if digest == OF_ZEROS else digest for digest in digests]
        at = (start - number * CHUNK_BYTES) // PAGE_BYTES * DIGEST_BYTES
        block[at : at + len(digests) * DIGEST_BYTES] = b"".join(digests)


_of_this_thread = threading.local()


def _buffer() -> memoryview:
    """Of one chunk, aligned for O_DIRECT; the same one each time, which is faster than a new one."""
    if not hasattr(_of_this_thread, "buffer"):
        _of_this_thread.buffer = memoryview(mmap.mmap(-1, CHUNK_BYTES))
    buffer: memoryview = _of_this_thread.buffer
    return buffer


def _by_chunk(regions: Iterable[Region], size: int) -> dict[int, list[Region]]:
    """Regions, which are in order, as whole pages, each in one chunk. What the last page lacks is zeros, as for who maps it."""
    found: dict[int, list[Region]] = {}
    done = 0
    for start, end in regions:
        position = max(start - start % PAGE_BYTES, done)
        end = min(end + -end % PAGE_BYTES, size + -size % PAGE_BYTES)
        while position < end:
            number = position // CHUNK_BYTES
            stop = min(end, (number + 1) * CHUNK_BYTES)
            found.setdefault(number, []).append((position, stop))
            position = stop
        done = max(done, end)
    return found


def _in_threads(work: Callable[[Item], Result], items: Iterable[Item], stop: threading.Event | None) -> list[Result]:
    """Reading lets other threads run, hashing small pages does not."""
    failed = threading.Event()  # not the caller's: what it does meanwhile has not failed

    def one(item: Item) -> Result:
        if failed.is_set() or (stop is not None and stop.is_set()):
            raise InterruptedByUserError("The sums were not taken to their end.")
        return work(item)

    with ThreadPoolExecutor(THREADS, thread_name_prefix="sums") as pool:
        try:
            with signals_held():  # a thread that is half begun is nobody's
                begun = [pool.submit(one, item) for item in items]
            for ended in as_they_end(begun):
                ended.result()
            return [ended.result() for ended in begun]
        except BaseException:
            with signals_held():  # one that ends a join has Python take the thread for ended, and it reads on
                failed.set()
                pool.shutdown()
            raise


def _chunk_digests(sums_fd: int, size: int) -> bytes:
    return _read(sums_fd, _chunks_of(size) * CHUNK_DIGEST_BYTES, _chunks_of(size) * BLOCK_BYTES)


def _chunks_of(size: int) -> int:
    return -(-size // CHUNK_BYTES)


def _root(size: int, chunk_digests: bytes) -> str:
    return hashlib.sha256(size.to_bytes(8, "little") + chunk_digests).hexdigest()


def _digest_of_block(block: bytes | bytearray) -> bytes:
    return NOTHING if block == ZEROS else hashlib.sha256(block).digest()


def _of_page(block: bytes | bytearray, page: int) -> bytes | bytearray:
    return block[page * DIGEST_BYTES : (page + 1) * DIGEST_BYTES]


def _read(fd: int, count: int, offset: int) -> bytes:
    """What is missing reads as zeros."""
    data = bytearray(count)
    _fill(fd, memoryview(data), offset)
    return bytes(data)


def _fill(fd: int, into: memoryview, offset: int) -> None:
    done = 0
    while done < len(into):
        count = os.preadv(fd, [into[done:]], offset + done)
        done += count
        if count == 0 or (
            done < len(into) and offset + done >= os.fstat(fd).st_size
        ):  # O_DIRECT reads nothing from there
            into[done:] = bytes(len(into) - done)
            return
