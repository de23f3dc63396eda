"""What /proc/PID tells of a process: its mappings, its descriptors, its memory."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """One line of /proc/PID/maps. ``dev`` is major:minor in hexadecimal, as printed."""

    start: int
    end: int
    perms: str
    offset: int
    dev: str
    ino: int
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """One entry of /proc/PID/fd with its flags from fdinfo."""

    fd: int
    target: str
    dev: int
    ino: int
    flags: int

    @property
    def writable(self) -> bool:
        return self.flags & os.O_ACCMODE in (os.O_WRONLY, os.O_RDWR)


def mappings(pid: int) -> list[Mapping]:
    """All mappings, in address order."""
    found = []
    for line in Path(f"/proc/{pid}/maps").read_text(errors="surrogateescape").splitlines():
        span, perms, offset, dev, ino, *rest = line.split(maxsplit=5)
        start, _, end = span.partition("-")
        found.append(
            Mapping(
                start=int(start, 16),
                end=int(end, 16),
                perms=perms,
                offset=int(offset, 16),
                dev=dev,
                ino=int(ino),
                path=rest[0] if rest else "",
            )
        )
    return found


def printed_device(fd: int) -> str:
    """The device of an open file as ``maps`` prints it: on btrfs it is not stat's (H74). Found by mapping one page ourselves."""
    ino = os.fstat(fd).st_ino
    if os.fstat(fd).st_size == 0:
        raise ValueError("an empty file cannot be mapped")
    with mmap.mmap(fd, 1, mmap.MAP_PRIVATE, mmap.PROT_READ):
        own = [mapping for mapping in mappings(os.getpid()) if mapping.ino == ino]
    target = os.readlink(f"/proc/self/fd/{fd}")
    exact = [mapping.dev for mapping in own if mapping.path == target]
    candidates = set(exact or [mapping.dev for mapping in own])
    if len(candidates) != 1:
        raise OSError(f"maps shows inode {ino} on {sorted(candidates)}")
    return candidates.pop()


def mappings_of_file(pid: int, path: Path) -> list[Mapping]:
    """The mappings of a file in another process, by inode and device, whatever path they are shown with."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        ino = os.fstat(fd).st_ino
        dev = printed_device(fd)
    finally:
        os.close(fd)
    return [mapping for mapping in mappings(pid) if mapping.ino == ino and mapping.dev == dev]


def open_descriptors(pid: int) -> list[Descriptor]:
    """All open descriptors; those that close meanwhile are left out."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(entry)
            stat = entry.stat()
            info = Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text()
        except FileNotFoundError:
            continue
        flags = next(line.split()[1] for line in info.splitlines() if line.startswith("flags:"))
        found.append(
            Descriptor(fd=int(entry.name), target=target, dev=stat.st_dev, ino=stat.st_ino, flags=int(flags, 8))
        )
    return sorted(found, key=lambda descriptor: descriptor.fd)


def smaps_rollup(pid: int) -> dict[str, int]:
    """/proc/PID/smaps_rollup in bytes: Rss, Pss, Anonymous, Swap and so on."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        key, value, _ = line.split()
        found[key.removesuffix(":")] = int(value) * 1024
    return found
