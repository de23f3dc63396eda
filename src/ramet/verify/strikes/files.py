"""What sabotages do to files: snapshots, disks and directories of instances are changed, replaced, linked or left behind."""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ramet.errors import ConfigError
from ramet.linux import procfs
from ramet.model import PAGE_BYTES
from ramet.verify import evidence, isolation
from ramet.verify.world import World

STRANGE_TOKEN = b"strange!" * 8
RANDOM_VALUES = 240
"""A page of random bytes has more different ones than this; code and tables have fewer."""


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a published file for writing, as only a saboteur would; its mode is put back."""
    mode = path.stat().st_mode & 0o7777
    path.chmod(0o600)
    try:
        with path.open("r+b") as stream:
            yield stream
    finally:
        path.chmod(mode)


def _file(world: World, role: str, name: str) -> Path:
    return world.snapshot_dir(role) / name


def _source_file(world: World, name: str) -> Path:
    return world.directories["source"] / name


def _token(world: World, role: str) -> str:
    return world.tokens[role]


def _replace(path: Path, make: Callable[[Path], object]) -> None:
    """Put another file in the place of ``path``, with its mode."""
    mode = path.stat().st_mode & 0o7777
    new = path.with_name(f".{path.name}.sabotage")
    make(new)
    new.chmod(mode)
    new.rename(path)


def _overwrite(path: Path, old: bytes, new: bytes) -> None:
    """Replace every occurrence of ``old`` in a file, in place."""
    assert len(old) == len(new)
    with _opened(path) as stream, mmap.mmap(stream.fileno(), 0) as view:
        at = view.find(old)
        if at < 0:
            raise ConfigError(f"The sabotage cannot strike: {path} does not hold what it wants to change.")
        while at >= 0:
            view[at : at + len(new)] = new
            at = view.find(old, at + len(new))


def _flip_byte(path: Path) -> None:
    with _opened(path) as stream:
        stream.seek(path.stat().st_size // 2)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes((byte[0] ^ 0xFF,)))


def _write_differing_pages(onto: Path, source: Path) -> None:
    """What a diff written in place does: the pages in which ``source`` differs are written into ``onto``."""
    with _opened(onto) as target, source.open("rb") as reader:
        position = 0
        while chunk := reader.read(256 * PAGE_BYTES):
            target.seek(position)
            have = target.read(len(chunk))
            for start in range(0, len(chunk), PAGE_BYTES):
                page = chunk[start : start + PAGE_BYTES]
                if page != have[start : start + PAGE_BYTES]:
                    target.seek(position + start)
                    target.write(page)
            position += len(chunk)


def hard_link_memory(world: World) -> None:
    """The fork's memory file is the source's, under another name."""
    _replace(_file(world, "fork", "memory"), lambda new: new.hardlink_to(_source_file(world, "memory")))


def diff_in_place(world: World) -> None:
    """The fork's diff snapshot goes into the source's memory file."""
    _write_differing_pages(_source_file(world, "memory"), _file(world, "fork", "memory"))


def full_copy(world: World) -> None:
    """The fork's memory file shares no block with its source's."""
    path = _file(world, "fork", "memory")

    def copy(new: Path) -> None:
        """Sparse, as a copy would be at its cheapest: holes stay holes, data is written."""
        with path.open("rb") as reader, new.open("wb") as writer:
            while chunk := reader.read(PAGE_BYTES):
                if chunk.count(0) == len(chunk):
                    writer.seek(len(chunk), os.SEEK_CUR)
                else:
                    writer.write(chunk)
            writer.truncate(path.stat().st_size)
            os.fsync(writer.fileno())

    _replace(path, copy)


def other_disk(world: World) -> None:
    """The fork's disk is not the source's."""
    path = _file(world, "fork", "disk.raw")
    _replace(path, lambda new: shutil.copyfile(path, new))
    _overwrite(path, _token(world, "source").encode(), STRANGE_TOKEN)


def flip_vmstate(world: World) -> None:
    """One byte of the source's device state."""
    _flip_byte(_source_file(world, "vmstate"))


def break_fork_vmstate(world: World) -> None:
    """One byte of the fork's device state."""
    _flip_byte(_file(world, "fork", "vmstate"))


def loosen_modes(world: World) -> None:
    """The fork's memory file can be read by others."""
    _file(world, "fork", "memory").chmod(0o644)


def lose_fork_diff(world: World) -> None:
    """The page with the fork's sentinel shows the base again, as if the dirty scan had missed it."""
    _overwrite(_file(world, "fork", "memory"), _token(world, "fork").encode(), _token(world, "source").encode())


def lose_what_source_wrote(world: World) -> None:
    """The page with the source's last sentinel holds something else in the snapshot that it sleeps on."""
    _overwrite(_file(world, "source", "memory"), _token(world, "source").encode(), STRANGE_TOKEN)


def write_late(world: World) -> None:
    """The source's memory file, after the last look at it."""
    _overwrite(_source_file(world, "memory"), _token(world, "source").encode(), STRANGE_TOKEN)


def write_into_sleeper(world: World) -> None:
    """The source's second snapshot shows in the sleeping fork's memory file."""
    _overwrite(_file(world, "sleeper", "memory"), world.tokens["sleeper"].encode(), _token(world, "source").encode())


def write_late_into_sleeper(world: World) -> None:
    """The sleeping fork's memory file, after the last look at it; and its disk, since it may wake from a copy in RAM."""
    for name in ("memory", "disk.raw"):
        _overwrite(_file(world, "sleeper", name), world.tokens["sleeper"].encode(), STRANGE_TOKEN)


def write_under_runner(world: World) -> None:
    """The known trap: what a running fork maps is written in place, and shows through every page that it has not copied."""
    info = world.info("runner")
    assert info.pid is not None
    own = {(file.printed_dev, file.ino): file.path for file in evidence.identify(isolation.files_of(info))}
    mapped = [own[m.dev, m.ino] for m in procfs.mappings(info.pid) if (m.dev, m.ino) in own]
    copies = [evidence.descriptor_of(info.pid, one) for one in evidence.guest_memory_mappings(info.pid)]
    mapped = mapped or [path for path in copies if path is not None]
    if not mapped:
        raise ConfigError(f"The sabotage cannot strike: process {info.pid} maps no file of its own.")
    _overwrite(mapped[0], world.tokens["runner"].encode(), STRANGE_TOKEN)


def write_into_sibling(world: World) -> None:
    """Before it starts, or its guest's next look would be at what it had read already."""
    _overwrite(_file(world, "sibling-b", "memory"), _token(world, "source").encode(), STRANGE_TOKEN)


def cross_siblings(world: World) -> None:
    """What sibling a wrote is in sibling b's diff."""
    memory = _file(world, "sibling-b", "memory")
    _overwrite(memory, _token(world, "sibling-b").encode(), _token(world, "sibling-a").encode())


def lose_first_generation(world: World) -> None:
    """What the first fork wrote is not in what the second is made of."""
    if "depth-2" not in world.tokens:
        _overwrite(_file(world, "depth-1", "memory"), _token(world, "depth-1").encode(), STRANGE_TOKEN)


def damage_descendant(world: World) -> None:
    """A file further down the chain changes with the deletion."""
    _overwrite(_file(world, "depth-4", "memory"), _token(world, "depth-4").encode(), STRANGE_TOKEN)


def tear_pair(world: World) -> None:
    """The fork's disk is that of a capture half a second later."""
    world.guest("source", "sleep 0.5")
    later = Path(world.named_snapshot("source", "later").disk)
    _replace(_file(world, "live-a", "disk.raw"), lambda new: shutil.copyfile(later, new))


def take_disk_of_running_source(world: World) -> None:
    """The fork's disk is the source's live one, which nobody has frozen."""
    live = world.info("source").live_disk
    assert live is not None
    _replace(_file(world, "live-a", "disk.raw"), lambda new: shutil.copyfile(live, new))


def write_into_golden(world: World) -> None:
    """The snapshot that is gone back to, once."""
    memory = world.directories["golden"] / "memory"
    if STRANGE_TOKEN not in memory.read_bytes():
        _overwrite(memory, world.tokens["golden"].encode(), STRANGE_TOKEN)


def resurrect_pages(world: World) -> None:
    """Where the source's memory is zero and its earlier snapshot, which the fork has, holds what it filled, the earlier shows."""
    before = _file(world, "sleeper", "memory")
    with _opened(_file(world, "source", "memory")) as target, before.open("rb") as reader:
        for at in range(0, before.stat().st_size, PAGE_BYTES):
            old = reader.read(PAGE_BYTES)
            if len(set(old)) < RANDOM_VALUES:
                continue
            target.seek(at)
            if target.read(PAGE_BYTES).count(0) == PAGE_BYTES:
                target.seek(at)
                target.write(old)


def keep_earlier(world: World) -> None:
    """A snapshot of the counting source, some counts before it goes to sleep."""
    world.notes["earlier"] = world.named_snapshot("source", "earlier").disk
    world.guest("source", "sleep 0.5")


def give_fork_earlier_disk(world: World) -> None:
    """The first of the forks has that disk."""
    _give_earlier_disk(world, "forked-first")


def give_source_earlier_disk(world: World) -> None:
    """The source has that disk, after its first sleep."""
    _give_earlier_disk(world, "source")


def _give_earlier_disk(world: World, role: str) -> None:
    earlier = world.notes.pop("earlier", None)
    if earlier is not None:
        _replace(_file(world, role, "disk.raw"), lambda new: shutil.copyfile(earlier, new))


def leave_something(world: World) -> None:
    """A directory of the deleted fork."""
    Path(world.notes["gone-fork"]).mkdir(mode=0o700)
    world.notes["left-behind"] = world.notes["gone-fork"]


def remember_fork_dir(world: World) -> None:
    """Where that was."""
    world.notes["gone-fork"] = str(Path(world.info("fork").run_dir).parent)


def clear_what_was_left(world: World) -> None:
    """The saboteur leaves nothing himself; nothing happens if he has not struck."""
    left = world.notes.pop("left-behind", None)
    if left is not None:
        Path(left).rmdir()
