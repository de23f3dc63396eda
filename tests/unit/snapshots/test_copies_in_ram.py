"""Copies in RAM: what is copied into RAM is what was published, and a VMM gets no other file passed on for it."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ramet.errors import VmmError
from ramet.linux import memfd
from ramet.model import PAGE_BYTES, CopyInRam, Method
from ramet.paths import SnapshotPaths
from ramet.snapshots import copies_in_ram, memory
from ramet.snapshots.dirty import find_dirty
from ramet.snapshots.memory import OpenCopyInRam
from ramet.snapshots.scatter import Scatter
from tests.unit.children import Mapper, holding, identity
from tests.unit.layouts import Layout, write_layout
from tests.unit.snapshots.memory_files import capture_memory

SIZE = 64 * PAGE_BYTES
DATA = {0: b"first", 5: b"in the middle" * 300, 63: b"last"}


@pytest.fixture
def snapshot(tmp_path: Path) -> SnapshotPaths:
    paths = SnapshotPaths(dir=tmp_path / "0123456789ab")
    paths.dir.mkdir()
    write_layout(paths.memory, Layout(size=SIZE, data=DATA))
    paths.memory.chmod(0o400)
    return paths


@pytest.fixture
def made(snapshot: SnapshotPaths) -> Iterator[tuple[int, CopyInRam]]:
    with copies_in_ram.made(snapshot) as made:
        yield made


def content_of(fd: int) -> str:
    return hashlib.sha256(os.pread(fd, 2 * SIZE, 0)).hexdigest()


def test_it_holds_what_was_published_with_its_holes_and_is_sealed(
    snapshot: SnapshotPaths, made: tuple[int, CopyInRam]
) -> None:
    fd, one = made
    assert content_of(fd) == hashlib.sha256(snapshot.memory.read_bytes()).hexdigest()
    assert os.fstat(fd).st_blocks * 512 < SIZE
    assert memfd.is_sealed(fd)
    assert os.fstat(fd).st_mode & 0o777 == 0o666
    assert one.snapshot_id == snapshot.dir.name
    assert snapshot.dir.name in str(Path(f"/proc/self/fd/{fd}").readlink())


def test_another_finds_it_at_whoever_has_it_open(made: tuple[int, CopyInRam]) -> None:
    fd, one = made
    with holding(lambda ready: ready()) as pid:  # inherits it
        found = copies_in_ram.opened(one, identity(pid), size_bytes=SIZE)
        assert found is not None
        assert content_of(found) == content_of(fd)
        os.close(found)
        assert copies_in_ram.opened(one, identity(pid), size_bytes=SIZE + PAGE_BYTES) is None


def test_nothing_else_is_taken_for_it(made: tuple[int, CopyInRam], tmp_path: Path) -> None:
    """What a VMM may put in its place: an unsealed file, a sealed one of its own, a FIFO that would wait for a writer."""
    _, one = made
    unsealed = memfd.create(f"{copies_in_ram.NAME}{one.snapshot_id}")
    own = memfd.create(f"{copies_in_ram.NAME}{one.snapshot_id}")
    os.mkfifo(tmp_path / "fifo")
    fifo = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    for fd in (unsealed, own):
        os.ftruncate(fd, SIZE)
    memfd.seal(own)
    try:
        with holding(lambda ready: ready()) as pid:
            vmm = identity(pid)
            for fd in (unsealed, fifo):  # were it known by that number
                found = os.fstat(fd)
                fake = msgspec.structs.replace(one, dev=found.st_dev, ino=found.st_ino)
                assert copies_in_ram.opened(fake, vmm, size_bytes=SIZE) is None
            assert copies_in_ram.opened(msgspec.structs.replace(one, ino=1), vmm, size_bytes=SIZE) is None
    finally:
        for fd in (unsealed, own, fifo):
            os.close(fd)


def test_of_a_process_that_has_ended_there_is_none(made: tuple[int, CopyInRam]) -> None:
    with holding(lambda ready: ready()) as pid:
        vmm = identity(pid)
    assert copies_in_ram.path_in(vmm, made[1]) is None
    assert copies_in_ram.opened(made[1], vmm, size_bytes=SIZE) is None


@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_capture_writes_the_dirty_pages_onto_what_the_guest_has(
    snapshot: SnapshotPaths, made: tuple[int, CopyInRam], tmp_path: Path, is_damaged: bool
) -> None:
    """That is in RAM: the published file may be cloned for it if it is what it was."""
    fd, one = made
    path = Path(f"/proc/self/fd/{fd}")
    assert copies_in_ram.is_unchanged(one, snapshot.memory, size_bytes=SIZE)
    if is_damaged:
        snapshot.memory.chmod(0o600)
        with snapshot.memory.open("r+b") as stream:
            stream.write(b"damaged")
        assert not copies_in_ram.is_unchanged(one, snapshot.memory, size_bytes=SIZE)
    with Mapper(path) as vmm:
        vmm.write(7 * PAGE_BYTES, b"dirty")
        assert [run.file_offset for run in find_dirty(vmm.vmm, path)] == [7 * PAGE_BYTES]
        file, dirty = capture_memory(
            vmm.vmm,
            mapped_file=path,
            into=tmp_path / "memory",
            base_is_empty=False,
            copy_in_ram=OpenCopyInRam(fd=fd, same=None if is_damaged else snapshot.memory),
            scatter=Scatter(),
        )
        assert (tmp_path / "memory").read_bytes() == vmm.read()
    assert dirty == ((7 * PAGE_BYTES, 8 * PAGE_BYTES),)
    assert file.method is not None
    assert (tmp_path / "memory").stat().st_blocks * 512 < SIZE


@pytest.mark.parametrize("pieces", [0, 10**6])
@pytest.mark.parametrize("is_damaged", [False, True])
def test_the_published_file_is_cloned_only_where_it_is_what_was_copied_and_is_not_to_be_written_whole(
    snapshot: SnapshotPaths,
    made: tuple[int, CopyInRam],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_damaged: bool,
    pieces: int,
) -> None:
    """Where there are reflinks: elsewhere all is copied, from RAM."""

    def clone(src: Path, dst: Path, *, allow: frozenset[Method]) -> Method:
        assert src == snapshot.memory
        assert allow == {Method.REFLINK}
        shutil.copyfile(src, dst)
        return Method.REFLINK

    monkeypatch.setattr(memory, "derive", clone)
    path = Path(f"/proc/self/fd/{made[0]}")
    with Mapper(path) as vmm:
        file, _ = capture_memory(
            vmm.vmm,
            mapped_file=path,
            into=tmp_path / "memory",
            base_is_empty=False,
            copy_in_ram=OpenCopyInRam(fd=made[0], same=None if is_damaged else snapshot.memory),
            scatter=Scatter(pieces=pieces),
        )
    assert file.method is (Method.COPY if is_damaged or pieces else Method.REFLINK)


def test_a_file_of_another_size_or_in_the_place_of_the_published_one_is_not_it(
    snapshot: SnapshotPaths, made: tuple[int, CopyInRam]
) -> None:
    found = snapshot.memory.stat()
    assert not copies_in_ram.is_unchanged(made[1], snapshot.memory, size_bytes=SIZE + PAGE_BYTES)
    snapshot.memory.chmod(0o440)
    assert copies_in_ram.is_unchanged(made[1], snapshot.memory, size_bytes=SIZE), "its content is the same"
    snapshot.memory.rename(snapshot.dir / "old")
    assert not copies_in_ram.is_unchanged(made[1], snapshot.memory, size_bytes=SIZE)
    snapshot.memory.write_bytes((snapshot.dir / "old").read_bytes())
    os.utime(snapshot.memory, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert not copies_in_ram.is_unchanged(made[1], snapshot.memory, size_bytes=SIZE)


def test_a_vmm_that_maps_something_else_is_not_captured(made: tuple[int, CopyInRam], snapshot: SnapshotPaths) -> None:
    with Mapper(snapshot.memory) as vmm, pytest.raises(VmmError, match="does not map each of the"):
        find_dirty(vmm.vmm, Path(f"/proc/self/fd/{made[0]}"))
