"""put and get: commands of the guest's workload, run by the agent's own program (agent/files.c).

As commands they are frozen, limited and ended like any other, and the agent itself never touches a file that could keep it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

from ramet.errors import GuestError, NoSpaceError, host_errors
from ramet.guests import wire
from ramet.guests.wire import GuestRefusedError, Reader
from ramet.linux import whole
from ramet.model import ExecResult

HEADER_BYTES = 12
SIZELESS_MAX_BYTES = 64 * 1024 * 1024
"""What a file without a size, as in /proc, may turn out to hold."""

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileMeta:
    """A file that was got: bytes received, and its permission bits."""

    size_bytes: int
    mode: int


class Incoming:
    """Takes what ``ramet-agent get`` writes: a header, then exactly as many bytes as it announces.

    Raises:
        GuestError: as soon as the guest sends more than it announced, or announces more than ``max_bytes``.
        NoSpaceError: before the first byte, if what was announced has no room.
    """

    def __init__(self, src: str, dst_fd: int, *, max_bytes: int | None, progress: Progress | None) -> None:
        self._src = src
        self._dst_fd = dst_fd
        self._max_bytes = max_bytes
        self._progress = progress
        self._header = bytearray()
        self._announced_bytes = 0
        self._limit_bytes = 0
        self._mode = 0
        self._received_bytes = 0

    def take(self, data: bytes) -> None:
        """The next bytes of its output."""
        if len(self._header) < HEADER_BYTES:
            missing = HEADER_BYTES - len(self._header)
            self._header += data[:missing]
            data = data[missing:]
            if len(self._header) == HEADER_BYTES:
                self._read_header()
        self._received_bytes += len(data)
        if self._received_bytes > self._limit_bytes:
            raise GuestError(f"The guest sent more than {self._limit_bytes} bytes of {self._src}.")
        if data:
            with host_errors("write the file that is copied"):
                whole.write(self._dst_fd, data)
            if self._progress:
                self._progress(self._received_bytes)

    def result(self) -> FileMeta:
        """Once the command has ended well.

        Raises:
            GuestError: if it sent less than it announced.
        """
        if len(self._header) < HEADER_BYTES or self._received_bytes < self._announced_bytes:
            raise GuestError(f"The guest sent {self._received_bytes} of {self._announced_bytes} bytes of {self._src}.")
        return FileMeta(size_bytes=self._received_bytes, mode=self._mode)

    def _read_header(self) -> None:
        header = Reader(bytes(self._header))
        self._announced_bytes = header.integer(8)
        self._mode = header.integer(4) & 0o7777
        self._limit_bytes = self._announced_bytes or SIZELESS_MAX_BYTES
        if self._max_bytes is not None:
            if self._announced_bytes > self._max_bytes:
                raise GuestError(f"{self._src} has {self._announced_bytes} bytes; {self._max_bytes} are allowed.")
            self._limit_bytes = min(self._limit_bytes, self._max_bytes)
        with host_errors("look for room for the file that is copied"):
            is_file = stat.S_ISREG(os.fstat(self._dst_fd).st_mode)
            room = os.fstatvfs(self._dst_fd)
        if is_file and self._announced_bytes > room.f_bavail * room.f_frsize:
            raise NoSpaceError(f"There is no room for the {self._announced_bytes} bytes of {self._src}.")


def check(result: ExecResult, path: str) -> None:
    """Translate how ``ramet-agent put`` or ``get`` ended.

    Raises:
        GuestRefusedError: with the guest's errno, if it says that it failed.
        GuestError: if it was ended.
    """
    if result.status == 0:
        return
    said = wire.printable(result.stderr.strip())
    if result.status is None:
        raise GuestError(f"In the guest: copying {path} was ended by signal {result.signal}.")
    raise GuestRefusedError(f"In the guest: {said or path}.", errno=result.status)
