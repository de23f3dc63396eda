"""/proc/PID: mappings with odd paths, descriptors and what they may, memory accounted."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ramet.linux import procfs
from ramet.linux.pagemap import PAGE_BYTES
from tests.unit.children import Mapper, holding, own_descriptors
from tests.unit.linux.own_mapping import OwnMapping, make_file

ODD_NAMES = [
    b"with space",
    b"two\nlines",
    b"carriage\rreturn",
    b"every\x0b\x0c\x1c\x1d\x1e\x85line\xc2\x85end",
    "line\u2028and\u2029paragraph".encode(),
    b"not \xff UTF-8",
    b" leading and trailing ",
    b"\\012 that is no newline",
    b"looks (deleted)",
    b"0-1 r-xp 00000000 00:00 0",
]


@pytest.mark.parametrize("name", ODD_NAMES, ids=repr)
def test_any_path_is_parsed(tmp_path: Path, name: bytes) -> None:
    """The kernel escapes the newline alone; everything else in a path is the path's, and no other line is lost to it."""
    path = make_file(tmp_path / os.fsdecode(name), 2)
    before = procfs.mappings(os.getpid())
    with OwnMapping(path) as mapping:
        after = procfs.mappings(os.getpid())
        [found] = procfs.mappings_of_file(os.getpid(), path)
        assert found in after
        assert (found.start, found.end, found.perms, found.offset) == (mapping.start, mapping.end, "rw-p", 0)
        assert found.path == str(path).replace("\n", "\\012")
        assert found.ino == path.stat().st_ino
    assert len(after) >= len(before)
    assert all(mapping.start < mapping.end for mapping in after)


def test_every_line_of_maps_is_there(tmp_path: Path) -> None:
    with Mapper(make_file(tmp_path / "file", 1)) as child:
        lines = Path(f"/proc/{child.pid}/maps").read_bytes().count(b"\n")
        mappings = procfs.mappings(child.pid)
    assert len(mappings) == lines
    assert [mapping.start for mapping in mappings] == sorted(mapping.start for mapping in mappings)
    assert any(mapping.path == "[stack]" and mapping.ino == 0 for mapping in mappings)
    assert any(mapping.path == "" for mapping in mappings)


def test_a_file_is_found_by_inode_whatever_it_is_called_now(tmp_path: Path) -> None:
    """H74: maps prints the path of now, and a publication renames directories."""
    path = make_file(tmp_path / "before", 2)
    with OwnMapping(path) as mapping:
        moved = path.rename(tmp_path / "after")
        [found] = procfs.mappings_of_file(os.getpid(), moved)
        assert (found.start, found.path) == (mapping.start, str(moved))
        other = make_file(path, 2)  # another inode under the old path
        assert procfs.mappings_of_file(os.getpid(), other) == []
        link = tmp_path / "link"
        link.hardlink_to(moved)
        moved.unlink()
        [found] = procfs.mappings_of_file(os.getpid(), link)
        assert (found.start, found.path) == (mapping.start, f"{moved} (deleted)")


def test_a_file_mapped_in_two_pieces_is_two_mappings_with_their_offsets(tmp_path: Path) -> None:
    path = make_file(tmp_path / "file", 8)
    with Mapper(path, pieces=[(4 * PAGE_BYTES, 4 * PAGE_BYTES), (0, 2 * PAGE_BYTES)]) as child:
        found = procfs.mappings_of_file(child.pid, path)
        pieces = sorted((mapping.offset, mapping.end - mapping.start) for mapping in found)
        assert pieces == [(0, 2 * PAGE_BYTES), (4 * PAGE_BYTES, 4 * PAGE_BYTES)]


def test_a_shared_mapping_says_so(tmp_path: Path) -> None:
    path = make_file(tmp_path / "file", 2)
    with Mapper(path, flags=mmap.MAP_SHARED) as child:
        assert [mapping.perms for mapping in procfs.mappings_of_file(child.pid, path)] == ["rw-s"]


def test_the_same_inode_number_on_another_device_is_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_file(tmp_path / "file", 2)
    inode = path.stat().st_ino
    with path.open("rb") as stream:
        device = procfs.printed_device(stream.fileno())
    real = procfs._maps_lines
    looks_like_it = f"/a {device} {inode} /b"
    elsewhere = f"1000-3000 rw-p 00000000 ff:ff {inode} {looks_like_it}".encode()
    monkeypatch.setattr(procfs, "_maps_lines", lambda pid: [elsewhere] if pid == 1 else real(pid))
    assert [mapping.dev for mapping in procfs.mappings(1)] == ["ff:ff"]
    assert procfs.mappings_of_file(1, path) == []


def test_the_printed_device_is_the_one_that_maps_prints(tmp_path: Path) -> None:
    path = make_file(tmp_path / "file", 2)
    with OwnMapping(path) as mapping, path.open("rb") as stream:
        line = next(
            line for line in Path("/proc/self/maps").read_text().splitlines() if line.startswith(f"{mapping.start:x}-")
        )
        assert procfs.printed_device(stream.fileno()) == line.split()[3]


def test_an_empty_file_is_an_os_error(tmp_path: Path) -> None:
    path = make_file(tmp_path / "file", 0)
    with path.open("rb") as stream, pytest.raises(OSError, match="cannot be mapped") as caught:
        procfs.printed_device(stream.fileno())
    assert caught.value.errno == errno.EINVAL


def test_looking_a_device_up_leaves_nothing_mapped_or_open(tmp_path: Path) -> None:
    path = make_file(tmp_path / "file", 2)
    before = own_descriptors()
    assert procfs.mappings_of_file(os.getpid(), path) == []
    assert procfs.mappings_of_file(os.getpid(), path) == []
    assert own_descriptors() == before


@pytest.mark.parametrize("read", [procfs.mappings, procfs.open_descriptors, procfs.smaps_rollup])
def test_a_process_that_is_not_there_is_an_os_error(read: Callable[[int], object]) -> None:
    with pytest.raises((FileNotFoundError, ProcessLookupError)):
        read(2**22)


# -- descriptors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "writable"),
    [
        (os.O_RDONLY, False),
        (os.O_WRONLY, True),
        (os.O_RDWR, True),
        (os.O_WRONLY | os.O_APPEND, True),
        (os.O_RDONLY | os.O_NONBLOCK, False),
        (os.O_PATH, False),
    ],
)
def test_a_descriptor_says_whether_it_may_write(tmp_path: Path, flags: int, writable: bool) -> None:
    path = make_file(tmp_path / "file", 1)
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        [found] = [descriptor for descriptor in procfs.open_descriptors(os.getpid()) if descriptor.fd == fd]
        assert found.flags == fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_CLOEXEC
    finally:
        os.close(fd)
    assert found.writable is writable
    assert (found.target, found.dev, found.ino) == (str(path), path.stat().st_dev, path.stat().st_ino)


def test_descriptors_of_a_file_without_a_name_are_found_by_inode(tmp_path: Path) -> None:
    """H68: neither a rename nor an unlink revokes a descriptor."""
    path = make_file(tmp_path / "file", 1)
    ino = path.stat().st_ino

    def hold(ready: Callable[[], None]) -> None:
        with path.open("r+b"):
            path.unlink()
            ready()

    with holding(hold) as pid:
        [found] = [descriptor for descriptor in procfs.open_descriptors(pid) if descriptor.ino == ino]
    assert found.writable
    assert found.target == f"{path} (deleted)"


def test_descriptors_of_the_file_at_a_path_and_of_no_other(tmp_path: Path) -> None:
    path, other = make_file(tmp_path / "file", 1), make_file(tmp_path / "other", 1)
    with path.open("rb") as one, path.open("r+b") as two, other.open("r+b"):
        found = procfs.descriptors_of_file(os.getpid(), path)
        assert {each.fd: each.writable for each in found} == {one.fileno(): False, two.fileno(): True}
        path.unlink()
        with pytest.raises(FileNotFoundError):
            procfs.descriptors_of_file(os.getpid(), path)


def test_all_kinds_of_descriptors_in_order() -> None:
    with ExitStack() as stack:
        for sock in socket.socketpair():
            stack.enter_context(sock)
        for end in os.pipe():
            stack.callback(os.close, end)
        found = procfs.open_descriptors(os.getpid())
    kinds = {descriptor.target.partition(":")[0] for descriptor in found}
    assert {"socket", "pipe"} <= kinds
    assert [descriptor.fd for descriptor in found] == sorted(descriptor.fd for descriptor in found)


def test_a_descriptor_that_closes_meanwhile_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.iterdir

    def with_one_that_is_gone(directory: Path) -> Iterator[Path]:
        yield directory / "999999"
        yield from real(directory)

    monkeypatch.setattr(Path, "iterdir", with_one_that_is_gone)
    found = procfs.open_descriptors(os.getpid())
    assert found
    assert all(descriptor.fd != 999999 for descriptor in found)


# -- memory -------------------------------------------------------------------------------------------------------


def test_anonymous_counts_the_written_pages_and_not_dirty_page_cache(tmp_path: Path) -> None:
    """``Private_Dirty`` would count both."""
    pages = 1024
    path = make_file(tmp_path / "file", pages)
    path.write_bytes(b"d" * pages * PAGE_BYTES)  # dirty in the page cache
    with Mapper(path) as child:
        child.read()
        before = procfs.smaps_rollup(child.pid)
        child.write(0, b"w" * (pages // 2) * PAGE_BYTES)
        after = procfs.smaps_rollup(child.pid)
    assert before["Rss"] >= pages * PAGE_BYTES
    grown = procfs.own_memory_bytes(after) - procfs.own_memory_bytes(before)
    assert abs(grown - pages // 2 * PAGE_BYTES) < 64 * PAGE_BYTES


def test_what_all_threads_of_a_process_have_run() -> None:
    """A busy thread that is not the first counts; a waiting one does not."""
    ends = threading.Event()

    def spin() -> None:
        while not ends.is_set():
            pass

    busy = threading.Thread(target=spin)
    before, since = procfs.cpu_ns(os.getpid()), time.process_time_ns()
    busy.start()
    time.sleep(0.3)
    counted, took = procfs.cpu_ns(os.getpid()) - before, time.process_time_ns() - since
    ends.set()
    busy.join()
    assert took > 0
    assert counted == pytest.approx(took, rel=0.2)
    with pytest.raises(OSError, match="Invalid argument"):
        procfs.cpu_ns(2**22 + 1)


def test_the_umask_is_asked_and_not_set() -> None:
    before = os.umask(0o027)
    try:
        assert procfs.umask() == 0o027
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
