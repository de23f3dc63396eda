"""Whether memory that forks share is judged by what the kernel allows, and not by who says so."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ramet.hypervisors.users import user_number
from ramet.linux import memfd
from ramet.model import MIB
from ramet.paths import SnapshotPaths
from ramet.snapshots import copies_in_ram
from ramet.verify import evidence, isolation
from tests.capabilities import requires
from tests.unit.verify.sparse_files import sparse

SIZE = 4 * MIB


@pytest.fixture
def published(tmp_path: Path) -> SnapshotPaths:
    paths = SnapshotPaths(dir=tmp_path / "0123456789ab")
    paths.dir.mkdir(mode=0o700)
    sparse(paths.memory, SIZE, {0: b"data", 3 * MIB: b"more"})
    paths.memory.chmod(0o400)
    return paths


@contextmanager
def mapped(fd: int) -> Iterator[None]:
    with mmap.mmap(fd, SIZE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE):
        yield


def problems(published: SnapshotPaths, *, shared: bool = True, own: bool = False) -> list[str]:
    """Of this process, were it a VMM."""
    files = evidence.identify([published.memory]) if own else []
    found = isolation.mapped_memory(
        os.getpid(), files, [], memory_mib=4, shared=published.memory if shared else None
    ).problems
    return [problem.replace(f"process {os.getpid()}", "it") for problem in found]


def test_a_sealed_copy_may_be_mapped_by_one_that_shares(published: SnapshotPaths) -> None:
    with copies_in_ram.made(published) as (fd, _), mapped(fd):
        assert problems(published) == []
        (told,) = problems(published, shared=False)
        assert told.endswith(", which is not its own")


def test_an_unsealed_copy_and_one_that_holds_something_else_may_not(
    published: SnapshotPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = memfd.create("other")
    os.ftruncate(fd, SIZE)
    try:
        with mapped(fd):
            assert len(problems(published)) == 2
        memfd.seal(fd)
        with mapped(fd):
            (told,) = problems(published)
            assert told == f"/memfd:other (deleted) of it does not hold what {published.memory} does"
    finally:
        os.close(fd)
    monkeypatch.setattr(memfd, "seal", lambda _fd: None)
    with copies_in_ram.made(published) as (fd, _), mapped(fd):
        (told,) = problems(published)
        assert told.endswith(" of it is not sealed: it can be written")


@requires("root")
def test_a_copy_that_a_vmm_has_made_may_not(published: SnapshotPaths) -> None:
    with copies_in_ram.made(published) as (fd, _), mapped(fd):
        os.fchown(fd, isolation.VMM_GROUPS.start, -1)
        (told,) = problems(published)
        assert told.endswith(f" of it is user {isolation.VMM_GROUPS.start}'s, not ours")


def test_what_is_not_open_in_it_cannot_be_looked_at(published: SnapshotPaths) -> None:
    with copies_in_ram.made(published) as (fd, _):
        view = mmap.mmap(fd, SIZE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    with view:
        for entry in Path("/proc/self/fd").iterdir():  # mmap keeps a descriptor of its own
            if entry.exists() and "ramet-memory" in str(entry.readlink()):
                os.close(int(entry.name))
        (told,) = problems(published)
        assert "neither its own nor open in it" in told


def test_the_published_file_may_be_shared_but_not_open_for_writing(published: SnapshotPaths) -> None:
    with published.memory.open("rb") as stream, mapped(stream.fileno()):
        assert problems(published, own=True) == []
    published.memory.chmod(0o600)
    with published.memory.open("r+b") as writing, mapped(writing.fileno()):
        assert problems(published, own=True, shared=False) == [], "its own: held, not enforced"
        assert all(told.endswith("which others map") for told in problems(published, own=True))
        assert problems(published, own=True)


@requires("root")
def test_the_group_of_a_snapshots_instance_may_read_what_its_forks_share(published: SnapshotPaths) -> None:
    """Where none shares it, and of another group, 0440 is loose: as is that of a snapshot of which nobody knows whose it is."""
    of, other = "ba9876543210", "0123456789ab"
    published.manifest.write_text(f'{{"format_version": 2, "instance_id": "{of}"}}')
    published.manifest.chmod(0o400)
    published.memory.chmod(0o440)
    loose = [f"{published.memory} is 0440"]
    for group in (0, user_number(other)):
        os.chown(published.memory, -1, group)
        assert isolation.loose_modes(published.dir, may_be_shared=True) == loose
    os.chown(published.memory, -1, user_number(of))
    assert isolation.loose_modes(published.dir, may_be_shared=True) == []
    assert isolation.loose_modes(published.dir, may_be_shared=False) == loose
    manifest = published.manifest.read_bytes()
    for damaged in (b"{", b"[]", b'{"instance_id": "no number"}'):
        published.manifest.write_bytes(damaged)
        assert isolation.loose_modes(published.dir, may_be_shared=True) == loose
    published.manifest.write_bytes(manifest)
    disk = published.memory.rename(published.disk)
    assert isolation.loose_modes(disk.parent, may_be_shared=True) == [f"{disk} is 0440"]


def test_one_snapshot_of_two_is_no_problem_only_where_it_may_be(published: SnapshotPaths) -> None:
    there = published.dir
    assert len(isolation.shared_inodes(there, there)) == 1
    assert isolation.shared_inodes(there, there, may_be_the_same=True) == []
    (there.parent / "linked").hardlink_to(published.memory)
    assert isolation.shared_inodes(there, there, may_be_the_same=True) == [f"{published.memory} has 2 links"]
