"""Whether instances are isolated at this moment, judged from outside: what the verifier's looks and test suites ask."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from ramet.instances.host import Host
from ramet.linux import memfd, procfs
from ramet.model import MIB, InstanceInfo, MemoryPolicy
from ramet.verify import evidence, fingerprints

PUBLISHED_MODE = 0o400
SHARED_MODE = 0o440
SHARED_FILES = frozenset({"memory", "vmstate"})
VMM_GROUPS = range(0x7000_0000, 0x7FFE_0000)
"""Numbers that only VMMs have, each instance its own (docs/security.md)."""


class _Published(msgspec.Struct, frozen=True):
    """Of a manifest: whose a snapshot is."""

    instance_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MappedMemory:
    """What a VMM maps of files for its guest's memory."""

    problems: tuple[str, ...]
    found: str
    enforced: bool
    """It holds no descriptor that can write to what it maps: the kernel would refuse a shared mapping."""


def files_of(info: InstanceInfo) -> list[Path]:
    """Every file of an instance: its snapshot's, and what its VMM works on."""
    directories = [Path(info.run_dir).parent / "work"]
    if info.snapshot is not None:
        directories.append(Path(info.snapshot.dir))
    return [path for directory in directories if directory.is_dir() for path in sorted(directory.iterdir())]


def image_files(host: Host) -> list[Path]:
    """The published files of all guest images."""
    return [path for path in (host.home / "images").rglob("*") if path.is_file()]


def shared_memory(info: InstanceInfo) -> Path | None:
    """The memory file that an instance may share with others: another's snapshot, which it was forked from and has not left."""
    if info.memory_policy is MemoryPolicy.SHARE and info.snapshot is not None and info.snapshot.instance_id != info.id:
        return Path(info.snapshot.memory)
    return None


def shared_inodes(mine: Path, theirs: Path, *, may_be_the_same: bool = False) -> list[str]:
    """What one snapshot's directory has of another's inodes, and what has a second name anywhere. ``may_be_the_same``: two that
    share a snapshot have one directory.
    """
    is_the_same = may_be_the_same and mine == theirs
    others = [] if is_the_same else list(theirs.iterdir())
    known = {(found.st_dev, found.st_ino): path.name for path in others for found in [path.stat()]}
    problems = []
    for path in sorted(mine.iterdir()):
        found = path.stat()
        there = known.get((found.st_dev, found.st_ino))
        if there is not None:
            problems.append(f"{path} is {theirs / there} (inode {found.st_ino})")
        if found.st_nlink != 1:
            problems.append(f"{path} has {found.st_nlink} links")
        if path.is_symlink():
            problems.append(f"{path} is a symlink")
    return problems


def mode_of(path: Path) -> int:
    """The mode of a published file; of one that forks share, whose group is that of its instance, as if they did not."""
    found = path.lstat()
    mode = stat.S_IMODE(found.st_mode)
    may_be_shared = mode == SHARED_MODE and path.name in SHARED_FILES
    return PUBLISHED_MODE if may_be_shared and found.st_gid == _group_of(path.parent) else mode


def _group_of(directory: Path) -> int | None:
    """The group that the VMMs are in which may share a snapshot; None if nothing says whose that is."""
    try:
        of = msgspec.json.decode((directory / "manifest.json").read_bytes(), type=_Published)
        return VMM_GROUPS.start + int(of.instance_id, 16) % len(VMM_GROUPS)
    except (OSError, ValueError, msgspec.DecodeError):
        return None


def as_published(path: Path, found: fingerprints.Fingerprint) -> fingerprints.Fingerprint:
    """A fingerprint as it would be if no fork shared the file: that its group may read it is no change, whenever it comes."""
    return replace(found, mode=mode_of(path))


def loose_modes(directory: Path, *, may_be_shared: bool) -> list[str]:
    """Published files that are not 0400, nor shared by forks if they may be, and a directory that is not its owner's alone."""
    problems = []
    mode = stat.S_IMODE(directory.stat().st_mode)
    if mode & 0o077:
        problems.append(f"{directory} is {mode:04o}")
    for path in sorted(directory.iterdir()):
        mode = mode_of(path) if may_be_shared else stat.S_IMODE(path.lstat().st_mode)
        if mode != PUBLISHED_MODE:
            problems.append(f"{path} is {mode:04o}")
    return problems


def mapped_memory(
    pid: int,
    own: Sequence[evidence.FileId],
    images: Sequence[evidence.FileId],
    *,
    memory_mib: int,
    shared: Path | None = None,
) -> MappedMemory:
    """Whether a VMM maps its own instance's memory file, all of it, and privately. ``images`` are the published files of images:
    a VMM that has booted maps its kernel, which nobody writes. ``shared`` is the published file that it may map as others do, or
    a sealed copy of it in RAM, and could not write.
    """
    mappings = [
        mapping
        for mapping in evidence.guest_memory_mappings(pid)
        if "s" in mapping.perms or not any(file.is_mapping(mapping) for file in images)
    ]
    problems = []
    mapped: list[evidence.FileId] = []
    copies: list[int] = []
    mapped_bytes = 0
    for mapping in mappings:
        size = mapping.end - mapping.start
        match = next((file for file in own if file.is_mapping(mapping)), None)
        if match is None and shared is not None and "s" not in mapping.perms:
            problems += _not_a_copy(pid, mapping, shared)
            copies.append(mapping.ino)
        elif match is None:
            problems.append(f"process {pid} maps {mib(size)} of {mapping.path}, which is not its own")
        else:
            mapped.append(match)
        if "s" in mapping.perms:
            problems.append(f"process {pid} maps {mib(size)} of {mapping.path} shared ({mapping.perms})")
        mapped_bytes += size
    if mapped_bytes < memory_mib * MIB:
        problems.append(f"process {pid} maps {mib(mapped_bytes)} of files; its guest has {memory_mib} MiB")
    reached = evidence.reach(pid, mapped)
    writable = [one for one in reached if one.can_write]
    published = [one for one in writable if one.file.path.parent.name != "work"]
    if shared is not None:
        problems += [f"process {pid} has a {one.how} on {one.file.path}, which others map" for one in published]
    whose = "its own snapshot" if published else "its own live file"
    note = f"; it holds a writable descriptor on {whose}: held, not enforced" if writable else ""
    inodes = ", ".join(dict.fromkeys(str(file.ino) for file in mapped))
    ways = ", ".join(dict.fromkeys(one.way for one in reached))
    what = f"its own inode {inodes}" if shared is None else f"the shared inode {inodes}"
    if copies and not mapped:
        what, ways = f"a copy of {shared} in RAM, inode {copies[0]}", "sealed, same SHA-256"
    found = f"process {pid}: {mib(mapped_bytes)} of {what}, private ({ways}){note}"
    return MappedMemory(problems=tuple(problems), found=found, enforced=not writable)


def _not_a_copy(pid: int, mapping: procfs.Mapping, memory: Path) -> list[str]:
    """Why what a VMM maps is not a copy in RAM of a published file that nobody can write."""
    path = evidence.descriptor_of(pid, mapping)
    if path is None:
        return [f"process {pid} maps {mapping.path}, which is neither its own nor open in it, to be looked at"]
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        problems = [] if memfd.is_sealed(fd) else [f"{mapping.path} of process {pid} is not sealed: it can be written"]
        if os.fstat(fd).st_uid != os.geteuid():
            problems.append(f"{mapping.path} of process {pid} is user {os.fstat(fd).st_uid}'s, not ours")
        if fingerprints.sha256_of(fd) != fingerprints.fingerprint(memory).sha256:
            problems.append(f"{mapping.path} of process {pid} does not hold what {memory} does")
    finally:
        os.close(fd)
    return problems


def can_write(pid: int, files: Sequence[evidence.FileId]) -> list[str]:
    """How a process could write one of ``files``: by a descriptor, or by a shared mapping."""
    return [f"process {pid} has a {one.how} on {one.file.path}" for one in evidence.reach(pid, files) if one.can_write]


def strangers_who_can_write(infos: Iterable[InstanceInfo]) -> list[str]:
    """Processes, named by Ramet or not, that can write a published file of these instances. Without reflinks an instance's own
    VMM may: ``MappedMemory.enforced`` says so.
    """
    known = list(infos)
    published = evidence.identify(
        path for info in known for path in files_of(info) if path.parent.name not in ("work", "run")
    )
    live = {info.pid for info in known}
    return [how for pid in evidence.processes() if pid not in live for how in can_write(pid, published)]


def problems_between(host: Host, *names: str) -> list[str]:
    """Everything at this moment by which one of these instances is not isolated from the others; empty if nothing is.

    Raises:
        NotFoundError: if there is no such instance.
    """
    infos = [host.get(name) for name in names]
    images = evidence.identify(image_files(host))
    problems = []
    for info in infos:
        others = [other for other in infos if other.id != info.id]
        if info.snapshot is not None:
            directory = Path(info.snapshot.dir)
            problems += loose_modes(directory, may_be_shared=True)  # if it was once, it stays so
            for other in others:
                if other.snapshot is not None:
                    shares = shared_memory(info) is not None or shared_memory(other) is not None
                    problems += shared_inodes(directory, Path(other.snapshot.dir), may_be_the_same=shares)
        if info.pid is not None:
            own = evidence.identify(files_of(info))
            foreign = evidence.identify(path for other in others for path in files_of(other))
            problems += [f"{info.name}: {problem}" for problem in can_write(info.pid, foreign)]
            if info.snapshot is not None:
                shared = shared_memory(info)
                found = mapped_memory(info.pid, own, images, memory_mib=info.memory_mib, shared=shared)
                problems += [f"{info.name}: {problem}" for problem in found.problems]
    return problems + strangers_who_can_write(infos)


def mib(size_bytes: int) -> str:
    """With one digit."""
    return f"{size_bytes / MIB:.1f} MiB"
