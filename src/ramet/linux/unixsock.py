"""Unix sockets in a directory of any depth.

``sun_path`` holds 108 bytes (unix(7)); binding and connecting through ``/proc/self/fd/<directory>`` keeps the name short
wherever the directory is.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def _short(directory: Path, name: str) -> Iterator[str]:
    dir_fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{dir_fd}/{name}"
    finally:
        os.close(dir_fd)


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


def connect_in(directory: Path, name: str) -> socket.socket:
    """Return a stream socket connected to ``directory/name``."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short(directory, name) as path:
            sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock
