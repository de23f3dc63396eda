"""Durable, atomic changes: written to a temporary file, fsynced, renamed, and the directory fsynced."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from ramet.errors import CorruptError, FormatVersionError, HostError
from ramet.linux import whole
from ramet.linux.libc import LIBC, checked
from ramet.signals import signals_held

T = TypeVar("T")
AT_FDCWD = -100
RENAME_NOREPLACE = 1
NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
OTHER_VERSION = "Use the version of Ramet that wrote it."
"""The hint where nothing is damaged: another Ramet reads it."""

LIBC.renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
LIBC.renameat2.restype = ctypes.c_int


def fsync_directory(path: Path) -> None:
    """Make the entries of a directory durable (fsync(2))."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600, durable: bool = True) -> None:
    """Replace ``path``: readers see the old bytes or the new ones, also after a power cut. On failure the old file stays and
    nothing else is left. ``durable=False``: a power cut soon after may bring the old bytes back.

    If the very last step fails, the fsync of the directory, the new bytes are there but may not survive a power cut.
    """
    temporary = _write_temporary(path, data, mode)
    try:
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        fsync_directory(path.parent)


def create_exclusive(path: Path, data: bytes) -> None:
    """Create ``path`` whole, or raise FileExistsError: link(2) lets only one of two creators win, and shows no half.

    On any failure ``path`` is not ours, and nothing else is left; nor is it by a kill, where the file system has O_TMPFILE.
    """
    with _without_a_name(path, data) as source:
        if isinstance(source, int):
            _link(source, path)
        else:
            path.hardlink_to(source)
        try:
            fsync_directory(path.parent)
        except BaseException:
            path.unlink(missing_ok=True)
            raise


@contextmanager
def replacing(path: Path) -> Iterator[int]:
    """A new file of mode 0600, as a descriptor to write to and read from; at the end of the block it takes the place of ``path``.

    If the block or the fsync at its end fails, ``path`` is what it was, and nothing else is left; nor is it by a kill while the
    block lasts, where the file system has O_TMPFILE. A power cut leaves the old file or the new one.
    """
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}")
    with ExitStack() as stack:
        stack.callback(temporary.unlink, missing_ok=True)
        with signals_held():  # what is opened is closed
            unnamed = _open_unnamed(path.parent)
            fd = os.open(temporary, NEW, 0o600) if unnamed is None else unnamed
            stack.callback(os.close, fd)
        yield fd
        os.fsync(fd)
        if unnamed is not None:
            _link(unnamed, temporary)
        temporary.rename(path)


@contextmanager
def _without_a_name(path: Path, data: bytes) -> Iterator[int | Path]:
    """A descriptor of a file that has no name, written and fsynced; or a temporary file's path, where there is no O_TMPFILE."""
    fd = _open_unnamed(path.parent)
    if fd is None:
        temporary = _write_temporary(path, data, 0o600)
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)
        return
    try:
        _write_durably(fd, data)
        yield fd
    finally:
        os.close(fd)


def _open_unnamed(directory: Path) -> int | None:
    """A file of mode 0600 without a name, to be linked (open(2), O_TMPFILE); None: this file system has none."""
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as err:
        if err.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
            raise
        return None


def _link(fd: int, path: Path) -> None:
    """Give a file without a name this one: link(2) does not follow symbolic links, linkat(2) does if told."""
    os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd)


def publish_directory(work: Path, final: Path) -> None:
    """Make a directory of finished files appear as ``final``, in this order: files 0400 and fsynced, directory fsynced,
    rename that replaces nothing, parent fsynced (H48). On failure ``work`` is there and ``final`` is not.

    Raises:
        FileExistsError: if ``final`` exists.
        OSError: if ``work`` holds anything but regular files.
    """
    for path in sorted(work.iterdir()):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchmod(fd, 0o400)
            os.fsync(fd)
        finally:
            os.close(fd)
    fsync_directory(work)
    rename_noreplace(work, final)
    try:
        fsync_directory(final.parent)
        if work.parent != final.parent:
            fsync_directory(work.parent)
    except BaseException:
        rename_noreplace(final, work)
        raise


def rename_noreplace(source: Path, target: Path) -> None:
    """renameat2(2) with RENAME_NOREPLACE: a plain rename would replace an empty directory."""
    try:
        checked(LIBC.renameat2(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), RENAME_NOREPLACE))
    except OSError as err:
        err.filename, err.filename2 = str(source), str(target)
        raise


def remove_tree(path: Path) -> None:
    """Delete a directory and all in it, or whatever else has that name; never through a symbolic link."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    shutil.rmtree(path)


class _Versioned(msgspec.Struct):
    format_version: int


def read_json(path: Path, kind: type[T], *, format_version: int | None = None) -> T:
    """Read a typed value. With ``format_version``, another version is refused as such, whatever fields it has.

    Raises:
        FileNotFoundError: if there is no such file.
        HostError: if it cannot be read.
        FormatVersionError: if it is of another version.
        CorruptError: if it is damaged; the message says where.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as err:
        raise HostError(f"Could not read {path}: {err.strerror}.") from err
    try:
        found = msgspec.json.decode(data, type=_Versioned).format_version if format_version is not None else None
        if found == format_version:
            return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as err:
        raise CorruptError(
            f"{path} is damaged: it is not what Ramet wrote ({err}).",
            hint="Restore it from a backup, or remove what it describes: ramet rm --force, ramet snapshot rm or ramet image rm.",
        ) from err
    raise FormatVersionError(
        f"{path} has format version {found}; this Ramet reads {format_version}.",
        hint=OTHER_VERSION,
    )


def write_json(path: Path, value: msgspec.Struct, *, durable: bool = True) -> None:
    """Replace a typed value."""
    write_atomic(path, json_of(value), durable=durable)


def json_of(value: msgspec.Struct) -> bytes:
    """Indented, so that a person can read it."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def _write_temporary(path: Path, data: bytes, mode: int) -> Path:
    """Written and fsynced. Never without: XFS may keep a later rename and lose the bytes, and an empty file is all there is."""
    temporary = path.with_name(f".{path.name[:80]}.{secrets.token_hex(4)}")
    fd = os.open(temporary, NEW, mode)
    try:
        _write_durably(fd, data)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
    return temporary


def _write_durably(fd: int, data: bytes) -> None:
    whole.write(fd, data)
    os.fsync(fd)
