"""What /proc tells: of a process its mappings, its descriptors and its memory; of the CPU its flags."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """One line of /proc/PID/maps. ``dev`` is major:minor in hexadecimal, as printed.

    ``path`` is as printed too: a newline in it is ``\\012``, and `` (deleted)`` follows a file that has no name any more.
    """

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
    """All mappings, in address order; none for a process that has ended and was not reaped yet."""
    return [_parse(line) for line in _maps_lines(pid)]


def _maps_lines(pid: int) -> list[bytes]:
    """Bytes, split at newlines alone: the kernel escapes no other character, and str knows more line ends (CR, VT, U+2028)."""
    return [line for line in Path(f"/proc/{pid}/maps").read_bytes().split(b"\n") if line]


def _parse(line: bytes) -> Mapping:
    span, perms, offset, dev, ino, *rest = line.split(maxsplit=5)
    start, _, end = span.partition(b"-")
    return Mapping(
        start=int(start, 16),
        end=int(end, 16),
        perms=perms.decode("ascii"),
        offset=int(offset, 16),
        dev=dev.decode("ascii"),
        ino=int(ino),
        path=os.fsdecode(rest[0]) if rest else "",
    )


def printed_device(fd: int) -> str:
    """The device of an open file as ``maps`` prints it: on btrfs it is not stat's (H74).

    Raises:
        OSError: EINVAL for an empty file, which cannot be mapped.
    """
    return _printed(fd).dev


def mappings_of_file(pid: int, path: Path) -> list[Mapping]:
    """The mappings of a file in another process, by inode and device, whatever path they are shown with.

    Raises:
        OSError: EINVAL for an empty file, which nobody can have mapped whole.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        stat = _stat_of_mappable(fd)
        lines = _maps_lines(pid)
        # Where maps prints another device than stat gives, stat's is one that it prints for no file at all (get_anon_bdev).
        found = _of_file(lines, f"{os.major(stat.st_dev):02x}:{os.minor(stat.st_dev):02x}", stat.st_ino)
        if found:
            return found
        own = _printed(fd)
    finally:
        os.close(fd)
    return _of_file(lines, own.dev, own.ino)


def _of_file(lines: list[bytes], dev: str, ino: int) -> list[Mapping]:
    shown = f" {dev} {ino} ".encode()  # a VMM has hundreds of mappings, and few lines hold this
    found = (_parse(line) for line in lines if shown in line)
    return [mapping for mapping in found if mapping.ino == ino and mapping.dev == dev]


def _stat_of_mappable(fd: int) -> os.stat_result:
    stat = os.fstat(fd)
    if stat.st_size == 0:
        raise OSError(errno.EINVAL, "an empty file cannot be mapped")
    return stat


def _printed(fd: int) -> Mapping:
    """How ``maps`` prints an open file, seen by mapping its first page ourselves: btrfs prints another device than stat gives,
    overlayfs on older kernels another inode too.
    """
    _stat_of_mappable(fd)
    with mmap.mmap(fd, 1, mmap.MAP_PRIVATE) as page:  # read and write: ctypes gives no address of a read-only one
        address = ctypes.addressof(ctypes.c_char.from_buffer(page))
        # A line that begins with our address: nothing maps offset -1, which the kernel could have joined it with.
        begins = f"{address:08x}-".encode()
        return next(_parse(line) for line in _maps_lines(os.getpid()) if line.startswith(begins))


def open_descriptors(pid: int) -> list[Descriptor]:
    """All open descriptors; those that close meanwhile are left out, and those whose file cannot be asked for its inode.

    A process that has ended and was not reaped yet has none: whoever concludes from what is *not* here looks whether it lives.
    """
    return _descriptors(pid, lambda _: True)


def descriptors_of_file(pid: int, path: Path) -> list[Descriptor]:
    """The open descriptors on the file that is at ``path`` now, by device and inode number.

    Raises:
        FileNotFoundError: if there is no file at ``path``, or no such process.
    """
    own = path.stat()
    return _descriptors(pid, lambda found: (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino))


def _descriptors(pid: int, wanted: Callable[[os.stat_result], bool]) -> list[Descriptor]:
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            stat = entry.stat()
            if not wanted(stat):
                continue
            target = str(entry.readlink())
            info = Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text()
        except OSError:
            continue  # closed meanwhile; or of a file system that lets not even root look, or is dead (FUSE)
        flags = next(line.split()[1] for line in info.splitlines() if line.startswith("flags:"))
        found.append(
            Descriptor(fd=int(entry.name), target=target, dev=stat.st_dev, ino=stat.st_ino, flags=int(flags, 8))
        )
    return sorted(found, key=lambda descriptor: descriptor.fd)


def bytes_written(pid: int) -> int:
    """What a process has passed to write(2) and its like since it began (``wchar`` of /proc/PID/io), sockets included."""
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        if line.startswith("wchar: "):
            return int(line.split()[1])
    raise OSError(errno.ENODATA, f"/proc/{pid}/io has no wchar")


def smaps_rollup(pid: int) -> dict[str, int]:
    """/proc/PID/smaps_rollup in bytes: Rss, Pss, Anonymous, Swap and so on."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        key, value, _ = line.split()
        found[key.removesuffix(":")] = int(value) * 1024
    return found


def own_memory_bytes(rollup: dict[str, int]) -> int:
    """Of what ``smaps_rollup`` gives, what the process has in no file, in RAM or in swap. ``Private_Dirty`` would count the dirty
    pages of files too that it alone maps.
    """
    return rollup["Anonymous"] + rollup.get("Swap", 0)


def cpu_ns(pid: int) -> int:
    """What all threads of a process have run on a CPU, those that have ended too, in ns (clock_getcpuclockid(3)).

    Raises:
        OSError: EINVAL if there is no such process.
    """
    return time.clock_gettime_ns(~pid << 3 | 2)  # CPUCLOCK_SCHED (include/linux/posix-timers_types.h)


def umask() -> int:
    """What is taken from the mode of a file that this process makes (proc(5), Umask): umask(2) cannot ask without setting it."""
    for line in Path("/proc/self/status").read_bytes().splitlines():
        if line.startswith(b"Umask:"):
            return int(line.split()[1], 8)
    raise OSError(errno.ENODATA, "the kernel does not say the umask", "/proc/self/status")


def descendants(pid: int) -> list[int]:
    """The live processes that descend from ``pid``, in the order of their pids. One whose parent has ended descends from whoever
    adopted it.
    """
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        parent = _parent(entry) if entry.name.isdigit() else None
        if parent is not None:
            children.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        below = children.pop(waiting.pop(), [])
        found += below
        waiting += below
    return sorted(found)


def _parent(process: Path) -> int | None:
    """None of a process that has ended; a zombie with threads left has not."""
    try:
        line = (process / "stat").read_bytes()
    except OSError:
        return None
    fields = line[line.rindex(b")") + 2 :].split()  # the name before it may hold anything
    has_ended = fields[0] == b"X" or (fields[0] == b"Z" and int(fields[17]) <= 1)
    return None if has_ended else int(fields[1])
