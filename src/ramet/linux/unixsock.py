"""Unix sockets in a directory of any depth.

``sun_path`` holds 108 bytes (unix(7)); binding and connecting through ``/proc/self/fd/<directory>`` keeps the name short
wherever the directory is.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CONNECT_DEADLINE_S = 10.0


@contextmanager
def _short(directory: Path, name: str) -> Iterator[str]:
    dir_fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{dir_fd}/{name}"
    finally:
        os.close(dir_fd)


@contextmanager
def _socket_in(directory: Path, name: str) -> Iterator[str]:
    """The path of a socket that is here: whoever may write to the directory could have put a symlink to another in its place."""
    fd = os.open(directory / name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise OSError(errno.ECONNREFUSED, "not a socket", name)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def listen_in(directory: Path, name: str) -> socket.socket:
    """Return a listening stream socket bound to ``directory/name``; a stale socket of that name is replaced."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with suppress(FileNotFoundError):
            (directory / name).unlink()
        with _short(directory, name) as path:
            sock.bind(path)
        sock.listen(1)
    except BaseException:
        sock.close()
        raise
    return sock


def connect_in(directory: Path, name: str, *, deadline_s: float = CONNECT_DEADLINE_S) -> socket.socket:
    """Return a stream socket connected to ``directory/name``.

    Raises:
        TimeoutError: if the listener's backlog stays full for ``deadline_s`` seconds: its process hangs.
        OSError: if nobody listens.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # connect(2) would wait for ever; the time limit for sending is also its own, and passes with EAGAIN (unix(7), socket(7)).
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(max(deadline_s, 0.001)))
        with _socket_in(directory, name) as path:
            _connect(sock, path)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(0))
    except BlockingIOError as err:
        sock.close()
        raise TimeoutError(errno.ETIMEDOUT, f"it has accepted no connection for {deadline_s:g} s", name) from err
    except BaseException:
        sock.close()
        raise
    return sock


def _connect(sock: socket.socket, path: str) -> None:
    """connect(2) until it has: after a signal Python asks SO_ERROR, and takes the 0 of any unix socket for success."""
    while True:
        sock.connect(path)
        try:
            sock.getpeername()
        except OSError as err:
            if err.errno != errno.ENOTCONN:
                raise
        else:
            return


def _timeval(seconds: float) -> bytes:
    """struct timeval; no time at all means no limit."""
    return struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))
