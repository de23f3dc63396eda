"""What may be anything: only a regular file is read, and no more of it than is good for us; and leases."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from ramet.linux import foreign, leases, unixsock


def a_socket(path: Path) -> None:
    socket.socket(socket.AF_UNIX).bind(str(path))


@pytest.mark.parametrize(
    "plant",
    [os.mkfifo, a_socket, Path.mkdir, lambda path: path.symlink_to("/etc/passwd"), lambda path: None],
    ids=["fifo", "socket", "directory", "symlink", "nothing"],
)
def test_what_is_no_regular_file_is_not_read(tmp_path: Path, plant: Callable[[Path], object]) -> None:
    path = tmp_path / "log"
    plant(path)
    assert foreign.read_tail(path, limit=100) == b""
    with pytest.raises(OSError, match=r"."):
        foreign.read_whole(path, limit=100)


def test_of_a_large_one_the_end_is_read_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as stream:
        stream.truncate(8 << 40)
        stream.seek(0, os.SEEK_END)
        stream.write(b"the end")
    assert foreign.read_tail(path, limit=7) == b"the end"
    with pytest.raises(OSError, match="more than 100"):
        foreign.read_whole(path, limit=100)
    path.write_bytes(b"small")
    assert foreign.read_whole(path, limit=5) == foreign.read_tail(path, limit=100) == b"small"


def test_who_writes_is_seen_wherever_the_descriptor_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    reading = os.open(path, os.O_RDONLY)
    ours, theirs = socket.socketpair()
    try:
        assert leases.nobody_writes(reading)
        writing = os.open(path, os.O_RDWR)
        assert not leases.nobody_writes(reading)
        socket.send_fds(ours, [b"x"], [writing])
        os.close(writing)
        assert not leases.nobody_writes(reading), "it is on its way"
        theirs.close()
        assert leases.nobody_writes(reading)
    finally:
        os.close(reading)
        ours.close()
        theirs.close()


def test_a_symlink_to_anothers_socket_is_not_connected_to(tmp_path: Path) -> None:
    with unixsock.listen_in(tmp_path, "others.sock"):
        (tmp_path / "mine.sock").symlink_to("others.sock")
        with pytest.raises(ConnectionRefusedError):
            unixsock.connect_in(tmp_path, "mine.sock")
        unixsock.connect_in(tmp_path, "others.sock").close()
