"""What is in a guarded tree, whatever its kind, and all that can be told of an entry without reading its bytes."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from ramet.errors import host_errors


class Kind(StrEnum):
    """What an entry of a directory is (inode(7)), in words."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    SOCKET = "socket"
    FIFO = "FIFO"
    BLOCK_DEVICE = "block device"
    CHARACTER_DEVICE = "character device"

    @property
    def is_read(self) -> bool:
        """Whether all that it holds is compared: a file's bytes, a directory's entries, where a symlink points."""
        return self in (Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK)


_KINDS = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFSOCK: Kind.SOCKET,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFBLK: Kind.BLOCK_DEVICE,
    stat.S_IFCHR: Kind.CHARACTER_DEVICE,
}


def kind_of(mode: int) -> Kind:
    """The kind that a ``st_mode`` says."""
    return _KINDS[stat.S_IFMT(mode)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry, as lstat(2), readlink(2) and listxattr(2) give it."""

    kind: Kind
    status: os.stat_result
    target: str | None
    """Where a symlink points."""
    attributes: Mapping[str, str | None]
    """The extended attributes: the SHA-256 of each value, None for one that may not be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entries:
    """The entries at one time; ``unreadable`` says why one could not be looked at."""

    found: dict[Path, Entry] = field(default_factory=dict)
    unreadable: dict[Path, str] = field(default_factory=dict)

    def why_unreadable(self, path: Path) -> str | None:
        """Of the entry itself, or of a directory above it."""
        return next((self.unreadable[one] for one in (path, *path.parents) if one in self.unreadable), None)


def entries_of(roots: Sequence[Path], *, again: bool = False) -> Entries:
    """The entries at and below ``roots``, each once, in order. One that vanishes meanwhile is left out.

    Raises:
        HostError: if one cannot be looked at, unless ``again``: then it is among the unreadable.
    """
    entries = Entries()
    for root in roots:
        failed: list[OSError] = []
        for path in sorted(_paths(root, failed)):
            try:
                entries.found[path] = _look(path)
            except OSError as err:
                failed.append(err)
        for why in failed:
            if isinstance(why, FileNotFoundError | NotADirectoryError):
                continue
            if not again:
                with host_errors(f"look at {why.filename}"):
                    raise why
            entries.unreadable[Path(why.filename)] = why.strerror or str(why)
    return entries


def _paths(root: Path, failed: list[OSError]) -> Iterator[Path]:
    yield root
    if not root.is_symlink() and root.is_dir():
        for directory, inner, names in os.walk(root, onerror=failed.append):
            yield from (Path(directory, name) for name in (*inner, *names))


def _look(path: Path) -> Entry:
    status = path.lstat()
    kind = kind_of(status.st_mode)
    return Entry(
        kind=kind,
        status=status,
        target=str(path.readlink()) if kind is Kind.SYMLINK else None,
        attributes=_attributes(path),
    )


def _attributes(path: Path) -> dict[str, str | None]:
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as err:
        if err.errno in (errno.ENOTSUP, errno.ENOSYS):
            return {}
        raise
    found: dict[str, str | None] = {}
    for name in sorted(names):
        try:
            found[name] = hashlib.sha256(os.getxattr(path, name, follow_symlinks=False)).hexdigest()
        except OSError as err:
            if err.errno == errno.ENODATA:
                continue  # gone meanwhile
            if err.errno not in (errno.EACCES, errno.EPERM, errno.ENOTSUP):
                raise
            found[name] = None
    return found


# -- comparing ----------------------------------------------------------------------------------------------------


def compare_entries(was: Entry, now: Entry) -> list[str]:
    """What changed, in words; of files, their owner and extended attributes alone: the rest is in their fingerprints.

    A socket, a FIFO or a device that was made anew in the same way is the same. A directory is its inode: nothing says that
    another one holds what it held.
    """
    if was.kind is not now.kind:
        return [f"it was a {was.kind}, and is a {now.kind}"]
    found = []
    if was.target != now.target:
        found.append(f"it pointed to {was.target}, and points to {now.target}")
    pairs = []
    if now.kind is Kind.DIRECTORY:
        pairs += [("device", was.status.st_dev, now.status.st_dev), ("inode", was.status.st_ino, now.status.st_ino)]
    if now.kind in (Kind.BLOCK_DEVICE, Kind.CHARACTER_DEVICE):
        pairs.append(("device number", was.status.st_rdev, now.status.st_rdev))
    found += [f"{what} {old} became {new}" for what, old, new in pairs if old != new]
    modes = [oct(stat.S_IMODE(one.status.st_mode)) for one in (was, now)]
    if now.kind is not Kind.FILE and modes[0] != modes[1]:
        found.append("mode {} became {}".format(*modes))
    owners = [f"{one.status.st_uid}:{one.status.st_gid}" for one in (was, now)]
    if owners[0] != owners[1]:
        found.append("owner {} became {}".format(*owners))
    return [*found, *_attribute_differences(was.attributes, now.attributes)]


def _attribute_differences(was: Mapping[str, str | None], now: Mapping[str, str | None]) -> Iterator[str]:
    for name in sorted(was.keys() | now.keys()):
        if name not in was:
            yield f"extended attribute {name} is new"
        elif name not in now:
            yield f"extended attribute {name} is gone"
        elif None not in (was[name], now[name]) and was[name] != now[name]:
            yield f"extended attribute {name} has another value"
