"""Write an initramfs: a cpio archive in the newc format (Documentation/driver-api/early-userspace/buffer-format.rst).

Reproducible: entries in the order given, no times, no owners, inode numbers counted up. No root needed: device nodes are entries.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass

MAGIC = b"070701"
TRAILER = "TRAILER!!!"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One file of the archive; ``mode`` holds the type bits, ``device`` major and minor of a node."""

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(path: str) -> Entry:
    """A directory; its parents are entries of their own, before it."""
    return Entry(path=path, mode=stat.S_IFDIR | 0o755)


def file(path: str, data: bytes, permissions: int = 0o644) -> Entry:
    """A regular file."""
    return Entry(path=path, mode=stat.S_IFREG | permissions, data=data)


def symlink(path: str, target: str) -> Entry:
    """A symbolic link."""
    return Entry(path=path, mode=stat.S_IFLNK | 0o777, data=target.encode())


def character_device(path: str, major: int, minor: int) -> Entry:
    """A device node, for which no root is needed here."""
    return Entry(path=path, mode=stat.S_IFCHR | 0o600, device=(major, minor))


def archive(entries: Iterable[Entry]) -> bytes:
    """The archive's bytes, padded to 512.

    Raises:
        ValueError: for a path twice, or one that is absolute or leaves the root.
    """
    parts = []
    seen: set[str] = set()
    for number, entry in enumerate(entries, start=1):
        if entry.path in seen or entry.path.startswith("/") or ".." in entry.path.split("/"):
            raise ValueError(f"{entry.path!r} cannot be an entry")
        seen.add(entry.path)
        parts.append(_encode(entry, number))
    parts.append(_encode(Entry(path=TRAILER, mode=0), 0))
    return _pad(b"".join(parts), 512)


def _encode(entry: Entry, number: int) -> bytes:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    header = MAGIC + b"".join(b"%08X" % field for field in fields)
    return _pad(header + name, 4) + _pad(entry.data, 4)


def _pad(data: bytes, unit: int) -> bytes:
    return data + bytes(-len(data) % unit)
