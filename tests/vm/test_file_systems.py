"""The store's mechanisms on real ext4, XFS and btrfs: reflinks, extents, printed devices, full disks. No guest is run."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ramet.errors import NoSpaceError, UnsupportedError
from ramet.linux import extents, procfs, reflink
from ramet.model import MIB, Method
from ramet.paths import SnapshotPaths
from ramet.snapshots.publish import publish
from ramet.snapshots.scatter import PIECES_MAX
from ramet.store.derive import derive, probe_reflink
from ramet.store.layout import open_store, work_in_progress
from tests.capabilities import requires
from tests.unit.children import Mapper
from tests.unit.linux.own_mapping import OwnMapping
from tests.unit.snapshots.memory_files import Fingerprint, capture
from tests.unit.snapshots.published import fill
from tools import loopfs

pytestmark = requires("loopfs")

ANY = frozenset({Method.REFLINK, Method.COPY})
REFLINK = frozenset({Method.REFLINK})
COPY = frozenset({Method.COPY})
PAGE = 4096
FIEMAP_EXTENT_UNWRITTEN = 0x800


@pytest.fixture(scope="module")
def mounts() -> Iterator[dict[str, Path]]:
    """One file system of each kind, for all the tests of this file."""
    with ExitStack() as stack:
        yield {kind: stack.enter_context(loopfs.loopfs(kind, size_mib=1024)) for kind in ("ext4", "xfs", "btrfs")}


@pytest.fixture
def place(mounts: dict[str, Path], request: pytest.FixtureRequest) -> Path:
    """A new directory on the file system that the test is parametrized with."""
    directory = mounts[request.param] / f"{request.node.name}".replace("/", "-")
    directory.mkdir()
    return directory


on_each = pytest.mark.parametrize("place", ["ext4", "xfs", "btrfs"], indirect=True)
on_reflinks = pytest.mark.parametrize("place", ["xfs", "btrfs"], indirect=True)
on_ext4 = pytest.mark.parametrize("place", ["ext4"], indirect=True)


def random_file(path: Path, size: int = 4 * MIB) -> Path:
    path.write_bytes(os.urandom(size))
    return path


def extents_of(path: Path) -> list[extents.Extent]:
    with path.open("rb") as stream:
        return extents.fiemap(stream.fileno())


# -- derive -------------------------------------------------------------------------------------------------------


@on_reflinks
def test_a_reflink_shares_every_extent_and_is_a_file_of_its_own(place: Path) -> None:
    """H30: by FIEMAP, not by what the method says."""
    source, clone = random_file(place / "source"), place / "clone"
    assert probe_reflink(place) is None
    assert derive(source, clone, allow=ANY) is Method.REFLINK
    assert clone.stat().st_ino != source.stat().st_ino
    assert clone.read_bytes() == source.read_bytes()
    for path in (source, clone):
        found = extents_of(path)
        assert extents.allocated_bytes(found) == 4 * MIB
        assert extents.exclusive_bytes(found) == 0
    assert [extent.physical for extent in extents_of(clone)] == [extent.physical for extent in extents_of(source)]


@on_reflinks
def test_a_write_to_either_is_not_seen_by_the_other_and_costs_what_it_wrote(place: Path) -> None:
    """H01."""
    source, clone = random_file(place / "source"), place / "clone"
    derive(source, clone, allow=REFLINK)
    before = source.read_bytes()
    with clone.open("r+b") as stream:
        stream.seek(MIB)
        stream.write(b"c" * 16 * PAGE)
    assert source.read_bytes() == before
    assert extents.exclusive_bytes(extents_of(clone)) == 16 * PAGE
    with source.open("r+b") as stream:
        stream.write(b"s" * PAGE)
    assert clone.read_bytes()[:PAGE] == before[:PAGE]


@on_reflinks
def test_holes_are_cloned_as_holes(place: Path) -> None:
    source, clone = place / "source", place / "clone"
    with source.open("wb") as stream:
        stream.truncate(256 * MIB)
        stream.seek(100 * MIB)
        stream.write(os.urandom(PAGE))
    derive(source, clone, allow=REFLINK)
    assert clone.stat().st_size == 256 * MIB
    assert extents.allocated_bytes(extents_of(clone)) == PAGE


@on_reflinks
def test_a_clone_of_a_file_with_dirty_pages_has_them(place: Path) -> None:
    """H33: nothing was written back when FICLONE is asked."""
    source, clone = place / "source", place / "clone"
    with source.open("wb", buffering=0) as stream:
        stream.write(b"d" * MIB)
        derive(source, clone, allow=REFLINK)
    assert clone.read_bytes() == b"d" * MIB


@on_each
def test_copy_alone_shares_nothing_even_where_the_kernel_could(place: Path) -> None:
    source, copy = random_file(place / "source"), place / "copy"
    assert derive(source, copy, allow=COPY) is Method.COPY
    assert copy.read_bytes() == source.read_bytes()
    assert extents.exclusive_bytes(extents_of(copy)) == 4 * MIB


@on_ext4
def test_without_reflinks_it_is_a_copy_or_a_refusal_that_says_why(place: Path) -> None:
    source = random_file(place / "source")
    why = f"FICLONE: {os.strerror(errno.EOPNOTSUPP)}"
    assert probe_reflink(place) == why
    with pytest.raises(UnsupportedError) as caught:
        derive(source, place / "clone", allow=REFLINK)
    assert caught.value.why == why
    assert derive(source, place / "copy", allow=ANY) is Method.COPY
    assert {path.name for path in place.iterdir()} == {"source", "copy"}
    assert extents.exclusive_bytes(extents_of(place / "copy")) == 4 * MIB


@on_reflinks
def test_across_file_systems_it_is_a_copy(place: Path, mounts: dict[str, Path]) -> None:
    """EXDEV."""
    source = random_file(mounts["ext4"] / f"source-of-{place.name}")
    assert derive(source, place / "copy", allow=ANY) is Method.COPY
    assert (place / "copy").read_bytes() == source.read_bytes()
    with pytest.raises(UnsupportedError, match="cannot clone"):
        derive(source, place / "clone", allow=REFLINK)


@pytest.mark.parametrize("place", ["xfs"], indirect=True)
def test_scattered_pages_take_their_own_size_and_not_32_times_it(place: Path) -> None:
    """H73: with XFS's default hint each 4 KiB page sets 128 KiB aside."""
    source = random_file(place / "source", 64 * MIB)
    taken = {}
    for hint in (True, False):
        clone = place / f"clone-{hint}"
        derive(source, clone, allow=REFLINK)
        with clone.open("r+b", buffering=0) as stream:
            if not hint:
                reflink.set_cow_extent_size(stream.fileno(), 0)
            assert reflink.get_cow_extent_size(stream.fileno()) == (PAGE if hint else 0)
            before = os.statvfs(place).f_bfree
            for page in range(0, 64 * MIB // PAGE, 128):
                os.pwrite(stream.fileno(), b"w" * PAGE, page * PAGE)
            os.fsync(stream.fileno())
        taken[hint] = (before - os.statvfs(place).f_bfree) * PAGE
    pages = 64 * MIB // PAGE // 128
    assert taken[True] < 4 * pages * PAGE
    assert taken[False] > 16 * pages * PAGE, "the hint is not needed any more: say so in design and code"


@on_reflinks
def test_a_memory_file_that_diffs_have_scattered_is_written_whole(place: Path) -> None:
    """H73: a clone of it takes a step for each extent."""
    base = random_file(place / "memory", 4 * MIB)
    with Mapper(base) as child:
        for page in range(0, 1000, 20):
            child.write(page * PAGE, b"d" * PAGE)
        view = child.read()
        cloned = capture(child, base, place / "cloned", pieces=PIECES_MAX - 50)
        copied = capture(child, base, place / "copied", pieces=PIECES_MAX - 49)
    assert (cloned.method, cloned.pieces) == (Method.REFLINK, PIECES_MAX)
    assert (copied.method, copied.pieces) == (Method.COPY, 0)
    for name in ("cloned", "copied"):
        assert (place / name).read_bytes() == view
        with (place / name).open("rb") as stream:
            assert extents.count_extents(stream.fileno()) == len(extents_of(place / name))
    assert len(extents_of(place / "cloned")) > 90
    assert len(extents_of(place / "copied")) < 10
    assert extents.exclusive_bytes(extents_of(place / "copied")) == 4 * MIB


# -- extents and mappings -----------------------------------------------------------------------------------------


@on_each
def test_more_extents_than_one_call_returns(place: Path) -> None:
    count = 2 * extents.BATCH + 17
    path = place / "scattered"
    with path.open("wb", buffering=0) as stream:
        for block in range(count):
            os.pwrite(stream.fileno(), b"x" * PAGE, 3 * block * PAGE)
    found = extents_of(path)
    logical = [extent.logical for extent in found]
    assert logical == sorted(set(logical))
    written = [
        extent for extent in found if not extent.flags & FIEMAP_EXTENT_UNWRITTEN
    ]  # XFS sets aside more, and says so
    assert [(extent.logical, extent.length) for extent in written] == [
        (3 * block * PAGE, PAGE) for block in range(count)
    ]


@on_each
def test_a_mapping_is_found_whatever_device_maps_prints(place: Path) -> None:
    """H74: on btrfs it is not stat's."""
    path = random_file(place / "memory", MIB)
    printed = f"{os.major(path.stat().st_dev):02x}:{os.minor(path.stat().st_dev):02x}"
    with OwnMapping(path) as mapping, path.open("rb") as stream:
        [found] = procfs.mappings_of_file(os.getpid(), path)
        assert (found.start, found.end, found.ino) == (mapping.start, mapping.end, path.stat().st_ino)
        differs = procfs.printed_device(stream.fileno()) != printed
    assert differs == ("btrfs" in place.name)


# -- a full disk --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "size_mib"), [("ext4", 96), ("xfs", 320)])
@pytest.mark.parametrize("at", ["derive", "write"])
def test_a_capture_on_a_full_disk_publishes_nothing_and_touches_nothing(kind: str, size_mib: int, at: str) -> None:
    """H12, H31: full when the base is copied (where it is copied), or when dirty pages are written where it had holes."""
    with loopfs.loopfs(kind, size_mib=size_mib) as mount:
        store = open_store(mount / "home")
        base = random_file(mount / "memory", MIB)
        os.truncate(base, 8 * MIB)
        before = Fingerprint.of(base)
        with Mapper(base) as child:
            child.write(2 * MIB, os.urandom(4 * MIB))
            view = child.read()
            _fill_up(mount, leaving=16 * PAGE if at == "derive" else MIB + 32 * PAGE)
            with pytest.raises(NoSpaceError), work_in_progress(store, "0123456789ab") as work:
                _capture_and_publish(child, base, work, SnapshotPaths(dir=store.snapshots / "0123456789ab"))
            assert list(store.snapshots.iterdir()) == []
            assert list(store.tmp.iterdir()) == []
            assert Fingerprint.of(base) == before
            (mount / "ballast").unlink()
            capture(child, base, mount / "after")
            assert (mount / "after").read_bytes() == view, "nothing of what it had written was lost"


def _capture_and_publish(child: Mapper, base: Path, work: Path, final: SnapshotPaths) -> None:
    """As standby does; the other files come from a template."""
    manifest = fill(work)
    (work / "memory").unlink()
    capture(child, base, work / "memory")
    publish(work, final, manifest)


def _fill_up(mount: Path, *, leaving: int) -> None:
    """Take all blocks but ``leaving`` bytes."""
    ballast = mount / "ballast"
    with ballast.open("wb", buffering=0) as stream:
        for chunk in (MIB, PAGE):
            while True:
                os.fsync(stream.fileno())
                free = os.statvfs(mount).f_bavail * os.statvfs(mount).f_frsize - leaving
                if free < chunk:
                    break
                try:
                    os.posix_fallocate(stream.fileno(), os.fstat(stream.fileno()).st_size, free // chunk * chunk)
                except OSError as err:
                    if err.errno != errno.ENOSPC:
                        raise
                    break


@on_each
def test_what_changed_since_a_file_was_derived_is_found_by_its_blocks(place: Path) -> None:
    """Written, zeroed and punched pages are all told; and where blocks are shared little else is."""
    base = random_file(place / "base")
    method = derive(base, place / "mine", allow=ANY)
    changed = {0, 3, 4, 77, 500, 1023}
    with (place / "mine").open("r+b") as stream:
        for page in changed:
            stream.seek(page * PAGE)
            stream.write(bytes(PAGE) if page == 3 else os.urandom(PAGE))
        stream.flush()
        subprocess.run(
            ["fallocate", "--punch-hole", "--offset", str(200 * PAGE), "--length", str(2 * PAGE), str(place / "mine")],
            check=True,
        )
        changed |= {200, 201}
        with base.open("rb") as base_stream:
            found = extents.changed_since(stream.fileno(), base_stream.fileno())
    pages = {page for start, end in found for page in range(start // PAGE, -(-end // PAGE))}
    assert changed <= pages
    assert len(pages) == sum((end - start) // PAGE for start, end in found), "in order, and each once"
    if method is Method.REFLINK:
        assert len(pages) <= len(changed) + 6 * 32, "XFS may set up to 128 KiB aside around a page"
    else:
        assert pages == set(range(1024))


@on_each
def test_a_derivation_that_nobody_wrote_to_has_not_changed(place: Path) -> None:
    base = random_file(place / "base")
    if derive(base, place / "mine", allow=ANY) is Method.REFLINK:
        with base.open("rb") as one, (place / "mine").open("rb") as other:
            assert extents.changed_since(other.fileno(), one.fileno()) == []
