"""What the instances of a scenario are and occupy after each of its steps: the story beside the verdicts, for the report."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ramet.errors import RametError
from ramet.instances.host import Host
from ramet.linux import extents
from ramet.model import InstanceInfo
from ramet.verify import isolation

CELLS = 128
"""How many equal parts a memory file is drawn in."""
SNAPSHOT = "snapshot"
"""The state of a named snapshot, which is no instance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryMap:
    """Where a memory file's bytes lie; ``own`` and ``shared`` give the bytes of each of ``CELLS`` equal parts, the rest is holes.

    Shared is what the file has in common with another memory file of the same run, by physical address.
    """

    role: str
    size_bytes: int
    extents: int
    own: tuple[int, ...]
    shared: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What is there at one moment."""

    states: Mapping[str, str]
    """By role; one that has no instance, or none any more, is not in it."""
    parents: Mapping[str, str | None]
    disk_bytes: int | None
    """What all files of all instances occupy together, each block counted once; None where the file system cannot tell."""
    extents: int | None
    maps: tuple[MemoryMap, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of a scenario, and what was there when it had ended."""

    text: str
    seconds: float
    survey: Survey | None = None
    unseen: str | None = None
    """Why there is no survey."""


@dataclass(frozen=True, slots=True)
class _Place:
    """The files of one instance, or of a named snapshot."""

    files: tuple[Path, ...]
    memories: tuple[Path, ...]
    """The one that its VMM maps first, then the published one."""


def step(text: str, seconds: float, host: Host, names: Mapping[str, str], snapshots: Mapping[str, str]) -> Step:
    """Look around after a step; ``names`` and ``snapshots`` are those of this run's instances and named snapshots, by role."""
    try:
        return Step(text=text, seconds=seconds, survey=_survey(host, names, snapshots))
    except (RametError, OSError) as err:
        return Step(text=text, seconds=seconds, unseen=str(err).splitlines()[0])


def _survey(host: Host, names: Mapping[str, str], snapshots: Mapping[str, str]) -> Survey:
    infos = {role: host.get(name) for role, name in names.items() if host.exists(name)}
    named = {name: snapshot for snapshot in host.snapshots() for name in snapshot.names}
    kept = {role: Path(named[name].dir) for role, name in snapshots.items() if name in named}
    places = {role: _place(info) for role, info in infos.items()}
    places |= {role: _Place(tuple(sorted(path.iterdir())), (path / "memory",)) for role, path in kept.items()}
    try:
        files = {path for place in places.values() for path in place.files}
        blocks, count = _blocks(files)
        maps = _maps({role: place.memories for role, place in places.items()})
        occupied: int | None = sum(end - start for start, end in blocks)
    except OSError:  # FIEMAP is not for every file system; a map is no verdict
        occupied, count, maps = None, None, ()
    roles = {info.id: role for role, info in infos.items()}
    return Survey(
        states={role: info.state.value for role, info in infos.items()} | dict.fromkeys(kept, SNAPSHOT),
        parents={role: _parent(info, names, roles) for role, info in infos.items()},
        disk_bytes=occupied,
        extents=count,
        maps=maps,
    )


def _place(info: InstanceInfo) -> _Place:
    mapped = Path(info.mapped_memory.path) if info.mapped_memory is not None else None
    if mapped is not None and mapped.is_symlink():  # a copy in RAM, by a descriptor: it lies nowhere
        mapped = None
    published = Path(info.snapshot.memory) if info.snapshot is not None else None
    memories = dict.fromkeys(path for path in (mapped, published) if path is not None and path.is_file())
    return _Place(tuple(isolation.files_of(info)), tuple(memories))


def _parent(info: InstanceInfo, names: Mapping[str, str], roles: Mapping[str, str]) -> str | None:
    """The role that this one was forked from, were it deleted since."""
    if not info.lineage:
        return None
    by_name = {name: role for role, name in names.items()}
    ancestor = info.lineage[-1]
    return roles.get(ancestor.instance_id) or by_name.get(ancestor.name)


# -- maps ---------------------------------------------------------------------------------------------------------


def _blocks(files: Iterable[Path]) -> tuple[list[tuple[int, int]], int]:
    """The physical ranges of files, joined, and how many extents there are."""
    found = [extent for path in files for extent in _extents(path)]
    return extents.union((one.physical, one.physical + one.length) for one in found), len(found)


def _extents(path: Path) -> list[extents.Extent]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:  # a VMM may remove what it works on
        return []
    try:
        return extents.fiemap(fd)
    finally:
        os.close(fd)


def _maps(memories: Mapping[str, Sequence[Path]]) -> tuple[MemoryMap, ...]:
    """Of the first memory file of each role, against all others, its own role's too."""
    found = {path: _extents(path) for paths in memories.values() for path in paths}
    maps = []
    for role, paths in memories.items():
        if not paths:
            continue
        others = (one for path, extents_of in found.items() if path != paths[0] for one in extents_of)
        blocks = extents.union((one.physical, one.physical + one.length) for one in others)
        maps.append(memory_map(role, paths[0].stat().st_size, found[paths[0]], blocks))
    return tuple(maps)


def memory_map(
    role: str, size_bytes: int, found: Sequence[extents.Extent], others: Sequence[tuple[int, int]]
) -> MemoryMap:
    """The map of a file with these extents; ``others`` are the physical ranges, sorted and disjoint, of what it may share."""
    own, shared = [0] * CELLS, [0] * CELLS
    starts = [start for start, _ in others]
    for one in found:
        _spread(own, size_bytes, one.logical, one.logical + one.length, 1)
        shift, end = one.logical - one.physical, one.physical + one.length
        for index in range(max(bisect_right(starts, one.physical) - 1, 0), len(others)):
            low, high = others[index]
            if low >= end:
                break
            common = max(low, one.physical) + shift, min(high, end) + shift
            _spread(shared, size_bytes, *common, 1)
            _spread(own, size_bytes, *common, -1)
    return MemoryMap(role=role, size_bytes=size_bytes, extents=len(found), own=tuple(own), shared=tuple(shared))


def _spread(cells: list[int], size_bytes: int, start: int, end: int, sign: int) -> None:
    """Add the bytes from ``start`` to ``end`` to the cells that they lie in; what is past the end of the file is left out."""
    while start < min(end, size_bytes):
        index = start * CELLS // size_bytes
        edge = min(end, -(-size_bytes * (index + 1) // CELLS), size_bytes)
        cells[index] += sign * (edge - start)
        start = edge
