"""The archive, byte for byte, and as a reader of the format sees it."""

from __future__ import annotations

import stat
from typing import NamedTuple

import pytest

from ramet.guests import initramfs


class Listed(NamedTuple):
    path: str
    mode: int
    links: int
    data: bytes
    device: tuple[int, int]
    inode: int


def read(archive: bytes) -> list[Listed]:
    """The entries of a newc archive, by buffer-format.rst of the kernel's documentation; everything is checked."""
    found: list[Listed] = []
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        inode, mode, uid, gid, links, mtime, size, dev_major, dev_minor, major, minor, name_size, check = fields
        assert (uid, gid, mtime, dev_major, dev_minor, check) == (0,) * 6
        name = archive[at + 110 : at + 110 + name_size]
        assert name.endswith(b"\0")
        data_at = (at + 110 + name_size + 3) & ~3
        assert not any(archive[at + 110 + name_size : data_at])
        data = archive[data_at : data_at + size]
        at = (data_at + size + 3) & ~3
        assert not any(archive[data_at + size : at])
        if name == b"TRAILER!!!\0":
            assert not any(archive[at:])
            return found
        found.append(Listed(name[:-1].decode(), mode, links, data, (major, minor), inode))


ENTRIES = [
    initramfs.directory("etc"),
    initramfs.file("etc/hostname", b"ramet\n"),
    initramfs.file("bin", b"\x7fELF", 0o755),
    initramfs.symlink("init", "bin/busybox"),
    initramfs.character_device("console", 5, 1),
]


def test_entries_come_back() -> None:
    assert read(initramfs.archive(ENTRIES)) == [
        Listed("etc", stat.S_IFDIR | 0o755, 2, b"", (0, 0), 1),
        Listed("etc/hostname", stat.S_IFREG | 0o644, 1, b"ramet\n", (0, 0), 2),
        Listed("bin", stat.S_IFREG | 0o755, 1, b"\x7fELF", (0, 0), 3),
        Listed("init", stat.S_IFLNK | 0o777, 1, b"bin/busybox", (0, 0), 4),
        Listed("console", stat.S_IFCHR | 0o600, 1, b"", (5, 1), 5),
    ]


def test_bytes_of_a_tiny_archive() -> None:
    entry = b"07070100000001000081A4" + b"00000000" * 2 + b"000000010000000000000003" + b"00000000" * 4
    entry += b"0000000200000000a\0xyz\0"
    trailer = b"070701" + b"00000000" * 4 + b"00000001" + b"00000000" * 6 + b"0000000B00000000TRAILER!!!\0"
    expected = entry + trailer
    archive = initramfs.archive([initramfs.file("a", b"xyz")])
    assert archive == expected + bytes(512 - len(expected))


def test_same_entries_same_bytes() -> None:
    assert initramfs.archive(ENTRIES) == initramfs.archive(list(ENTRIES))
    assert initramfs.archive(ENTRIES) != initramfs.archive(ENTRIES[::-1])


@pytest.mark.parametrize("length", range(9))
def test_padding(length: int) -> None:
    entries = [initramfs.file("n" * (length + 1), b"d" * length), initramfs.file("after", b"x")]
    archive = initramfs.archive(entries)
    assert len(archive) % 512 == 0
    assert [entry.data for entry in read(archive)] == [b"d" * length, b"x"]


@pytest.mark.parametrize("path", ["/etc", "a/../b", ".."])
def test_paths_that_leave_the_root(path: str) -> None:
    with pytest.raises(ValueError, match="cannot be an entry"):
        initramfs.archive([initramfs.file(path, b"")])


def test_path_twice() -> None:
    with pytest.raises(ValueError, match="cannot be an entry"):
        initramfs.archive([initramfs.file("a", b""), initramfs.directory("a")])
