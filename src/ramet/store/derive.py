"""``derive``: the only function that copies a file. It is told what it may do and says what it did.

The destination is built under a temporary name in its own directory and renamed into place, onto nothing, when it is whole: it
exists whole or not at all, and never has two names. Holes stay holes. The source is only ever opened for reading.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from ramet.errors import ConflictError, HostError, UnsupportedError, host_errors
from ramet.linux import reflink, whole
from ramet.linux.extents import map_data
from ramet.model import Method
from ramet.store import atomic

ANY_METHOD: Final = frozenset({Method.REFLINK, Method.COPY})
REFLINK_ONLY: Final = frozenset({Method.REFLINK})
CANNOT_REFLINK: Final = frozenset(
    {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ETXTBSY, errno.ENOSYS}
)
"""Errnos of FICLONE that mean "not here" (ioctl_ficlone(2)); every other one is an error."""
CANNOT_COPY_RANGE: Final = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
AGAIN_ATTEMPTS: Final = 5
COW_EXTENT_BYTES: Final = 4096
"""XFS sets aside 128 KiB per scattered page otherwise."""
COPY_CHUNK_BYTES: Final = 128 * 1024 * 1024
FALLBACK_CHUNK_BYTES: Final = 1024 * 1024


def derive(src: Path, dst: Path, *, allow: frozenset[Method], mode: int = 0o600, durable: bool = False) -> Method:
    """Make ``dst`` a file of its own with the bytes of ``src``, and return how. COPY writes bytes, also where the file system
    could share them. ``durable``: it survives a power cut from then on; without, the caller syncs it or can do without it.

    Raises:
        UnsupportedError: if only REFLINK is allowed and it is not possible here.
        ConflictError: if ``dst`` exists.
        NoSpaceError, HostError: for every other errno, and for a source that was written meanwhile (H32).
            In all cases nothing is left behind.
    """
    with host_errors(f"derive {dst} from {src}"):
        # O_NONBLOCK matters for a FIFO alone: without it, open(2) would wait for a writer before we could refuse it.
        src_fd = os.open(src, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(src_fd).st_mode):
                raise HostError(f"Could not derive {dst}: {src} is not a regular file.")
            return _build(src_fd, dst, allow=allow, mode=mode, durable=durable)
        finally:
            os.close(src_fd)


def copy_of(src_fd: int, dst: Path) -> Method:
    """The same, by COPY, of a file that is open already, such as one without a path.

    Raises:
        ConflictError, NoSpaceError, HostError: as ``derive``.
    """
    with host_errors(f"copy {dst}"):
        return _build(src_fd, dst, allow=frozenset({Method.COPY}), mode=0o600, durable=False)


def probe_reflink(directory: Path) -> str | None:
    """None if files in ``directory`` can be reflinked, else the reason; by a real FICLONE of two blocks, on nameless files.

    Raises:
        HostError: if the directory cannot be written.
    """
    with (
        host_errors(f"try a reflink in {directory}"),
        tempfile.TemporaryFile(dir=directory) as source,
        tempfile.TemporaryFile(dir=directory) as clone,
    ):
        source.write(b"ramet" + bytes(8187))
        source.flush()
        return _try_reflink(source.fileno(), clone.fileno())


def _build(src_fd: int, dst: Path, *, allow: frozenset[Method], mode: int, durable: bool) -> Method:
    before = os.fstat(src_fd)
    temporary = dst.with_name(f".{dst.name}.{secrets.token_hex(4)}")
    dst_fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        method = _fill(src_fd, dst_fd, before.st_size, allow)
        _require_unchanged(before, os.fstat(src_fd), dst)
        made = os.fstat(dst_fd).st_size
        if made != before.st_size:
            raise HostError(f"Could not derive {dst}: it has {made} bytes, and its source {before.st_size}.")
        if durable:
            os.fsync(dst_fd)
        try:
            atomic.rename_noreplace(temporary, dst)
        except FileExistsError as err:
            raise ConflictError(f"{dst} exists already.") from err
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(dst_fd)
    if durable:
        _make_entry_durable(dst)
    return method


def _require_unchanged(before: os.stat_result, after: os.stat_result, dst: Path) -> None:
    if after.st_size != before.st_size:
        raise HostError(
            f"The source of {dst} changed its size from {before.st_size} to {after.st_size} while it was copied."
        )
    if after.st_mtime_ns != before.st_mtime_ns:
        raise HostError(f"The source of {dst} was written while it was copied.")


def _make_entry_durable(dst: Path) -> None:
    try:
        atomic.fsync_directory(dst.parent)
    except BaseException:
        dst.unlink(missing_ok=True)
        raise


def _fill(src_fd: int, dst_fd: int, size: int, allow: frozenset[Method]) -> Method:
    if Method.REFLINK in allow:
        why = _try_reflink(src_fd, dst_fd)
        if why is None:
            return Method.REFLINK
        if Method.COPY not in allow:
            raise UnsupportedError(
                "This file system cannot clone files.",
                capability="reflink",
                why=why,
                hint="Keep the store on XFS (reflink=1, the default of mkfs.xfs) or btrfs.",
            )
    os.ftruncate(dst_fd, size)
    # The kernel's own copy is a reflink wherever that is possible, so it may not be used where reflinks are not wanted.
    copy = _copy_range if Method.REFLINK in allow else _read_write
    for start, end in map_data(src_fd):
        copy(src_fd, dst_fd, start, end)
    return Method.COPY


def _try_reflink(src_fd: int, dst_fd: int) -> str | None:
    """Clone; returns None, or why the file system cannot. The destination is empty and has never been truncated."""
    for attempt in range(AGAIN_ATTEMPTS):
        try:
            reflink.ficlone(dst_fd, src_fd)
        except OSError as err:
            if err.errno == errno.EAGAIN and attempt < AGAIN_ATTEMPTS - 1:
                os.fsync(src_fd)  # ZFS answers so while the source has dirty pages (H77)
                continue
            if err.errno in CANNOT_REFLINK:
                return f"FICLONE: {os.strerror(err.errno)}"
            raise
        break
    with suppress(OSError):  # a hint that only XFS knows
        reflink.set_cow_extent_size(dst_fd, COW_EXTENT_BYTES)
    return None


def _copy_range(src_fd: int, dst_fd: int, start: int, end: int) -> None:
    position = start
    while position < end:
        try:
            count = os.copy_file_range(
                src_fd, dst_fd, min(end - position, COPY_CHUNK_BYTES), offset_src=position, offset_dst=position
            )
        except OSError as err:
            if err.errno not in CANNOT_COPY_RANGE:
                raise
            count = 0
        if count == 0:  # some file systems answer so instead of copying (H34)
            _read_write(src_fd, dst_fd, position, end)
            return
        position += count


def _read_write(src_fd: int, dst_fd: int, start: int, end: int) -> None:
    buffer = memoryview(bytearray(FALLBACK_CHUNK_BYTES))
    position = start
    while position < end:
        count = os.preadv(src_fd, [buffer[: min(len(buffer), end - position)]], position)
        if count == 0:
            raise HostError(f"The source ended at {position}, before {end}: it was truncated while it was copied.")
        whole.pwrite(dst_fd, buffer[:count], position)
        position += count
