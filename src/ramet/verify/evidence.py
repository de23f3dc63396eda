"""Evidence from outside: what the kernel and the files say, whatever the code that is judged believes.

Nothing here asks Ramet. A process is seen through /proc/PID; what files hold is for fingerprints.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ramet.linux import extents, ksm, procfs

LARGE_MAPPING_BYTES = 1 << 20
LIMIT_NAME_WIDTH = 26
"""Of the column of names (fs/proc/base.c, proc_pid_limits)."""


# -- what a process can reach -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class FileId:
    """A file as stat(2) and as ``maps`` name it: on btrfs the two devices differ (H74)."""

    path: Path
    dev: int
    printed_dev: str | None
    ino: int

    def is_mapping(self, mapping: procfs.Mapping) -> bool:
        return (mapping.dev, mapping.ino) == (self.printed_dev, self.ino)


def identify(paths: Iterable[Path]) -> list[FileId]:
    """The identities of the regular files among ``paths``; one that vanishes meanwhile has none.

    Raises:
        OSError: if one cannot be opened for reading.
    """
    found = []
    for path in paths:
        if path.is_symlink() or not path.is_file():
            continue
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        try:
            info = os.fstat(fd)
            found.append(FileId(path=path, dev=info.st_dev, printed_dev=_printed_device(fd), ino=info.st_ino))
        finally:
            os.close(fd)
    return found


def _printed_device(fd: int) -> str | None:
    """None for a file that nobody can have mapped: an empty one, or on a file system without mappings."""
    try:
        return procfs.printed_device(fd)
    except OSError:
        return None


def processes() -> list[int]:
    """Every other process whose descriptors we may see."""
    return [pid for pid in _others() if os.access(f"/proc/{pid}/fd", os.R_OK | os.X_OK)]


def hidden_processes(among: Iterable[int] | None = None) -> int:
    """How many other processes there are whose descriptors we may not see; ``among`` these, if they are given."""
    pids = _others() if among is None else among
    return sum(
        1 for pid in pids if Path(f"/proc/{pid}").exists() and not os.access(f"/proc/{pid}/fd", os.R_OK | os.X_OK)
    )


def _others() -> list[int]:
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if pid != os.getpid()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How a process can reach a file: ``descriptor 12 (writable)``, ``mapping rw-p at 7f…``."""

    file: FileId
    how: str
    can_write: bool
    """A descriptor open for writing, or a shared mapping that is writable."""

    @property
    def way(self) -> str:
        """``how`` without the numbers that are another's each time: ``descriptor (writable)``, ``mapping rw-p``."""
        words = self.how.split()
        return f"mapping {words[1]}" if words[0] == "mapping" else f"descriptor {words[-1]}"


def reach(pid: int, files: Sequence[FileId]) -> list[Reach]:
    """Every open descriptor and mapping of ``pid`` on one of ``files``; none if it has ended, or may not be looked at."""
    found: list[Reach] = []
    by_inode = {(file.dev, file.ino): file for file in files}
    with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        for descriptor in procfs.open_descriptors(pid):
            file = by_inode.get((descriptor.dev, descriptor.ino))
            if file is not None:
                kind = "writable" if descriptor.writable else "read-only"
                how = f"descriptor {descriptor.fd} ({kind})"
                found.append(Reach(file=file, how=how, can_write=descriptor.writable))
    as_printed = {(file.printed_dev, file.ino): file for file in files}
    with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        for mapping in procfs.mappings(pid):
            file = as_printed.get((mapping.dev, mapping.ino))
            if file is not None:
                can_write = "s" in mapping.perms and "w" in mapping.perms
                how = f"mapping {mapping.perms} at {mapping.start:x}"
                found.append(Reach(file=file, how=how, can_write=can_write))
    return found


def guest_memory_mappings(pid: int) -> list[procfs.Mapping]:
    """The process's mappings of files that a guest's memory could be: large, writable, and nothing that it executes.

    All mappings of one file count together, since a guest's memory may have several.
    """
    mappings = [mapping for mapping in procfs.mappings(pid) if mapping.ino]
    executed = {(mapping.dev, mapping.ino) for mapping in mappings if "x" in mapping.perms}
    sizes: dict[tuple[str, int], int] = {}
    for mapping in mappings:
        if "w" in mapping.perms and (mapping.dev, mapping.ino) not in executed:
            key = (mapping.dev, mapping.ino)
            sizes[key] = sizes.get(key, 0) + mapping.end - mapping.start
    return [m for m in mappings if "w" in m.perms and sizes.get((m.dev, m.ino), 0) >= LARGE_MAPPING_BYTES]


def descriptor_of(pid: int, mapping: procfs.Mapping) -> Path | None:
    """A way to open what a process maps that has no other path: its own descriptor of it. None if it has none."""
    with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        for one in procfs.open_descriptors(pid):
            if (f"{os.major(one.dev):02x}:{os.minor(one.dev):02x}", one.ino) == (mapping.dev, mapping.ino):
                return Path(f"/proc/{pid}/fd/{one.fd}")
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Privileges:
    """What the kernel lets a process do at most (proc(5), /proc/PID/status)."""

    user: int
    capabilities: int
    """A bit for each that is in effect."""
    no_new_privileges: bool
    filters: int | None
    """Filters of system calls; None where the kernel does not count them (before Linux 5.10)."""
    mergeable_bytes: int
    """Of its memory, what the kernel may merge with equal pages of other processes."""
    limits: Mapping[str, int | None]
    """Of each resource, as ``/proc/PID/limits`` calls it, the most that it may have; None: no limit."""


def privileges(pid: int) -> Privileges:
    """Of the process, and of its main thread.

    Raises:
        OSError: if it has ended.
    """
    lines = (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    fields = {name: value.split() for name, _, value in lines}
    filters = fields.get("Seccomp_filters")
    return Privileges(
        user=int(fields["Uid"][1]),
        capabilities=int(fields["CapEff"][0], 16),
        no_new_privileges=fields.get("NoNewPrivs") == ["1"],
        filters=int(filters[0]) if filters else None,
        mergeable_bytes=ksm.mergeable_bytes(pid),
        limits=_limits(pid),
    )


def _limits(pid: int) -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    for line in Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]:
        hard = line[LIMIT_NAME_WIDTH:].split()[1]
        found[line[:LIMIT_NAME_WIDTH].rstrip()] = None if hard == "unlimited" else int(hard)
    return found


# -- disk ---------------------------------------------------------------------------------------------------------


def own_bytes(files: Iterable[Path], others: Iterable[Path]) -> tuple[int, int]:
    """(bytes on disk that ``files`` occupy and ``others`` do not, bytes shared with ``others``), each block counted once.

    By physical address (FIEMAP), after writeback.

    Raises:
        OSError: where the file system cannot tell.
    """
    mine = extents.union(_physical(files))
    theirs = extents.union(_physical(others))
    total = sum(end - start for start, end in mine)
    shared = overlap(mine, theirs)
    return total - shared, shared


def _physical(files: Iterable[Path]) -> list[tuple[int, int]]:
    found = []
    for path in files:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            found += [(extent.physical, extent.physical + extent.length) for extent in extents.fiemap(fd)]
        finally:
            os.close(fd)
    return found


def overlap(left: Sequence[tuple[int, int]], right: Sequence[tuple[int, int]]) -> int:
    """Bytes that two sorted lists of disjoint ranges have in common."""
    total = i = j = 0
    while i < len(left) and j < len(right):
        low = max(left[i][0], right[j][0])
        high = min(left[i][1], right[j][1])
        total += max(0, high - low)
        if left[i][1] <= right[j][1]:
            i += 1
        else:
            j += 1
    return total
