"""What a file is and what it holds: identity, SHA-256, and the digests of its pages. Each is taken through one descriptor."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from ramet.errors import InterruptedByUserError
from ramet.linux import extents, whole
from ramet.pages import ranges

T = TypeVar("T")
READ_BYTES = 256 << 10
"""One read: it stays in the CPU's second cache until it is hashed."""
ZEROS = bytes(READ_BYTES)
PAGE_BYTES = 4096
ZERO_PAGE = bytes(PAGE_BYTES)
DIGEST_BYTES = 8
CHUNK_BYTES = 1 << 20
EMPTY_CHUNK = bytes(CHUNK_BYTES // PAGE_BYTES * DIGEST_BYTES)
"""Digests of nothing but zeros."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """(st_dev, st_ino, size, SHA-256) of a file, and what else must not change."""

    name: str
    dev: int
    ino: int
    size_bytes: int
    sha256: str
    mode: int
    links: int
    allocated_bytes: int

    def __str__(self) -> str:
        return f"inode {self.ino}, {self.size_bytes} bytes, SHA-256 {self.sha256[:16]}…"


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """All that is found out about a file through one descriptor; digests of its pages only where they were asked for."""

    fingerprint: Fingerprint
    status: os.stat_result
    blocks: tuple[tuple[int, int, int], ...] | None
    """(logical, physical, length) of its extents, in bytes; None where the file system cannot tell."""
    pages: PageDigests | None


def fingerprint(path: Path, *, drop_cache: bool = False) -> Fingerprint:
    """Take the fingerprint of a file; holes are not read, but hashed as the zeros that they are.

    ``drop_cache`` asks the kernel to forget the file's cached pages first, so that the answer comes from the disk (H64).

    Raises:
        OSError: ELOOP for a symlink, and what open(2) and read(2) say.
    """
    return examine(path, drop_cache=drop_cache).fingerprint


def sha256_of(fd: int) -> str:
    """The SHA-256 of an open file, wherever it is.

    Raises:
        OSError: what read(2) says; if it is cut short meanwhile.
    """
    digest = hashlib.sha256()
    position = 0
    for start, data in _data(fd, READ_BYTES):
        _hash_zeros(digest, start - position)
        digest.update(data)
        position = start + len(data)
    _hash_zeros(digest, os.fstat(fd).st_size - position)
    return digest.hexdigest()


def fingerprints(directory: Path, *, drop_cache: bool = False) -> dict[str, Fingerprint]:
    """The fingerprint of every file in a snapshot's directory, by name; several files at a time, on several CPUs.

    Raises:
        OSError: as ``fingerprint`` does.
    """
    paths = sorted(directory.iterdir())

    def take(path: Path, stop: threading.Event) -> Fingerprint:
        return examine(path, drop_cache=drop_cache, stop=stop).fingerprint

    return {path.name: found for path, found in zip(paths, at_once(take, paths), strict=True)}


def examine(
    path: Path,
    *,
    drop_cache: bool = False,
    with_pages: bool = False,
    with_blocks: bool = False,
    stop: threading.Event | None = None,
) -> Examined:
    """Read a file once and find out all that is asked for.

    Raises:
        OSError: ELOOP for a symlink, and what open(2) and read(2) say; if it is cut short meanwhile.
        InterruptedByUserError: once ``stop`` is set.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        blocks = _blocks(fd) if with_blocks else None  # first of all: it writes back what was delayed
        if drop_cache:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        found = os.fstat(fd)
        digest = hashlib.sha256()
        chunks: dict[int, bytearray] = {}
        position = 0
        for start, data in _data(fd, READ_BYTES):
            if stop is not None and stop.is_set():
                raise InterruptedByUserError(f"{path} was not read to its end.")
            _hash_zeros(digest, start - position)
            digest.update(data)
            if with_pages:
                _digest_pages(chunks, start, data)
            position = start + len(data)
        _hash_zeros(digest, found.st_size - position)
    finally:
        os.close(fd)
    taken = Fingerprint(
        name=path.name,
        dev=found.st_dev,
        ino=found.st_ino,
        size_bytes=found.st_size,
        sha256=digest.hexdigest(),
        mode=stat.S_IMODE(found.st_mode),
        links=found.st_nlink,
        allocated_bytes=found.st_blocks * 512,
    )
    return Examined(fingerprint=taken, status=found, blocks=blocks, pages=_page_digests(chunks) if with_pages else None)


def at_once(take: Callable[[Path, threading.Event], T], paths: Sequence[Path]) -> list[T]:
    """``take`` each path, several at a time: hashlib lets others run while it hashes. If one fails, or a signal comes, the others
    are told to stop.
    """
    stop = threading.Event()
    workers = ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0)), thread_name_prefix="fingerprint")
    try:
        return list(workers.map(lambda path: take(path, stop), paths))
    except BaseException:
        stop.set()
        raise
    finally:
        workers.shutdown(cancel_futures=True)


def differences(before: Fingerprint, after: Fingerprint) -> list[str]:
    """What changed, in words; empty if nothing did."""
    pairs = (
        ("device", before.dev, after.dev),
        ("inode", before.ino, after.ino),
        ("size", before.size_bytes, after.size_bytes),
        ("SHA-256", before.sha256[:16], after.sha256[:16]),
        ("mode", oct(before.mode), oct(after.mode)),
        ("links", before.links, after.links),
    )
    return [f"{what} {was} became {now}" for what, was, now in pairs if was != now]


def _blocks(fd: int) -> tuple[tuple[int, int, int], ...] | None:
    try:
        return tuple((one.logical, one.physical, one.length) for one in extents.fiemap(fd))
    except OSError:
        return None  # tmpfs, for example


def _data(fd: int, piece_bytes: int) -> Iterator[tuple[int, memoryview]]:
    """The pages of a file that hold data, holes left out: (offset, bytes). Each piece is whole pages, but for the file's last,
    lies within one multiple of ``piece_bytes``, and is good until the next is asked for.

    Raises:
        OSError: if the file is cut short meanwhile.
    """
    buffer = memoryview(bytearray(piece_bytes))
    size = os.fstat(fd).st_size
    position = 0
    for start, end in extents.map_data(fd):  # by blocks, which may be smaller than pages
        position = max(position, start - start % PAGE_BYTES)
        end = min(end + -end % PAGE_BYTES, size)
        while position < end:
            piece = buffer[: min(piece_bytes - position % piece_bytes, end - position)]
            done = whole.pread(fd, piece, position)
            if done < len(piece):
                raise OSError(f"the file ended at {position + done}: it was cut short while it was read")
            yield position, piece
            position += len(piece)


def _hash_zeros(digest: hashlib._Hash, count: int) -> None:
    while count > 0:
        digest.update(ZEROS[:count] if count < READ_BYTES else ZEROS)
        count -= READ_BYTES


# -- pages --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PageDigests:
    """A digest of each 4 KiB page of a file, eight bytes each; nothing is kept of holes, nor of pages of zeros.

    They tell *which* pages differ. That a file is the same is for its SHA-256 to say.
    """

    chunks: dict[int, bytes] = field(default_factory=dict)
    """By MiB of the file: 256 digests, one after the other."""

    def differing(self, other: PageDigests) -> list[range]:
        """The pages that are not the same in both, as ranges of page numbers in order; a page that is missing is zeros."""
        return list(ranges(self._differing(other)))

    def _differing(self, other: PageDigests) -> Iterator[int]:
        for number in sorted(self.chunks.keys() | other.chunks.keys()):
            mine, theirs = self.chunks.get(number, EMPTY_CHUNK), other.chunks.get(number, EMPTY_CHUNK)
            if mine == theirs:
                continue
            first = number * CHUNK_BYTES // PAGE_BYTES
            for index in range(0, len(EMPTY_CHUNK), DIGEST_BYTES):
                if mine[index : index + DIGEST_BYTES] != theirs[index : index + DIGEST_BYTES]:
                    yield first + index // DIGEST_BYTES


def page_digests(path: Path) -> PageDigests:
    """Digest a file's pages; holes are not read.

    Raises:
        OSError: what open(2) and read(2) say.
    """
    found = examine(path, with_pages=True).pages
    assert found is not None
    return found


def _page_digests(chunks: dict[int, bytearray]) -> PageDigests:
    return PageDigests({number: bytes(digests) for number, digests in chunks.items() if digests != EMPTY_CHUNK})


def _digest_pages(chunks: dict[int, bytearray], start: int, data: memoryview) -> None:
    digests = chunks.setdefault(start // CHUNK_BYTES, bytearray(EMPTY_CHUNK))
    for offset in range(0, len(data), PAGE_BYTES):
        page = bytes(data[offset : offset + PAGE_BYTES])
        if page == ZERO_PAGE[: len(page)]:
            continue
        digest = hashlib.sha256(page)
        digest.update(ZERO_PAGE[len(page) :])  # the file's last page, as whoever maps it sees it
        index = (start + offset) % CHUNK_BYTES // PAGE_BYTES * DIGEST_BYTES
        digests[index : index + DIGEST_BYTES] = digest.digest()[:DIGEST_BYTES]
