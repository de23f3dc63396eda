"""What is really there, to be held against the model: every file of every snapshot, the records, and what is left at the end."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from ramet.linux.extents import map_data
from ramet.model import PAGE_BYTES
from ramet.paths import SnapshotPaths, StorePaths
from ramet.verify.isolation import mode_of
from tests.model.machine import Words, register_in, words_in_memory, words_on_disk

_ZEROS = bytes(PAGE_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Print:
    """A file's fingerprint, with its mode as if no fork shared it. A page of zeros and a hole are the same bytes."""

    inode: int
    mode: int
    links: int
    size_bytes: int
    sha256: str


def fingerprint(path: Path) -> Print:
    """Of all its bytes."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        digest = hashlib.sha256()
        for start, end in map_data(fd):
            data = os.pread(fd, end - start, start)
            for offset in range(0, len(data), PAGE_BYTES):
                page = data[offset : offset + PAGE_BYTES]
                if page != _ZEROS:
                    digest.update((start + offset).to_bytes(8, "little") + page)
    finally:
        os.close(fd)
    return Print(
        inode=found.st_ino,
        mode=mode_of(path),
        links=found.st_nlink,
        size_bytes=found.st_size,
        sha256=digest.hexdigest(),
    )


def words_in(snapshot: SnapshotPaths) -> Words:
    """What a guest that is restored from it would see."""
    with snapshot.memory.open("rb") as memory, snapshot.disk.open("rb") as disk:
        return Words(
            ram=words_in_memory(memory.fileno()),
            disk=words_on_disk(disk.fileno()),
            register=register_in(snapshot.vmstate.read_bytes()),
        )


def snapshots(paths: StorePaths) -> dict[str, dict[str, Print]]:
    """Every file of every snapshot, by the snapshot's id and the file's name."""
    return {
        directory.name: {path.name: fingerprint(path) for path in directory.iterdir()}
        for directory in paths.snapshots.iterdir()
    }


def records(paths: StorePaths) -> dict[str, bytes]:
    """Every record, by its instance's id, and every name."""
    found = {directory.name: (directory / "instance.json").read_bytes() for directory in paths.instances.iterdir()}
    for directory in (paths.instance_names, paths.snapshot_names):
        found |= {f"{directory.name}/{entry.name}": entry.read_bytes() for entry in directory.iterdir()}
    return found


def left_overs(paths: StorePaths) -> list[str]:
    """What is in a store besides images: nothing, once all of it was removed."""
    places = (paths.instances, paths.snapshots, paths.instance_names, paths.snapshot_names, paths.tmp, paths.locks)
    return sorted(str(entry.relative_to(paths.home)) for place in places for entry in place.iterdir())
