"""Child processes of tests: one that runs a function, one that holds something, one that maps a file and does as it is told."""

from __future__ import annotations

import mmap
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, NoReturn, Self

from ramet import helpers, process
from ramet.model import VmmProcess

ANSWER_S = 20.0
LIBC_SIGNALS = 0b11 << 31
"""Signals 32 and 33 in a mask of /proc/PID/status: glibc keeps them for itself, and nobody else can set them to anything."""


def run_in_child(function: Callable[[], object]) -> int:
    """Run a function in a forked process to its end; returns its exit code."""
    return exit_codes([fork(function)])[0]


def fork(function: Callable[[], object]) -> int:
    """Start a forked process that runs a function; returns its pid, for ``exit_codes``."""
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _end_with(function, parent)
    return pid


def exit_codes(pids: Sequence[int]) -> list[int]:
    """Wait for forked processes: 0, 1 for an exception (printed), or minus a signal's number, for each."""
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


@contextmanager
def holding(function: Callable[[Callable[[], None]], object]) -> Iterator[int]:
    """A process that calls ``function(ready)``; the block runs, with its pid, once it has called ``ready``. Killed after it."""
    reader, writer = os.pipe()

    def hold() -> None:
        os.close(reader)
        function(lambda: _say_ready_and_stay(writer))

    pid = fork(hold)
    os.close(writer)
    try:
        assert os.read(reader, 1) == b"r", "the child ended before it was ready"
        yield pid
    finally:
        os.close(reader)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def own_descriptors() -> set[str]:
    """The numbers of the open descriptors of this process, to compare with those of later."""
    listed = [entry.name for entry in Path("/proc/self/fd").iterdir()]
    return {name for name in listed if Path(f"/proc/self/fd/{name}").is_symlink()}  # without the one that listed them


def identity(pid: int) -> VmmProcess:
    """A live process as a record would name it."""
    started = process.start_time_ticks(pid)
    assert started is not None
    return VmmProcess(pid=pid, start_time_ticks=started, boot_id=process.boot_id())


class Mapper:
    """A process that maps a file, in one piece or several, and reads and writes its memory when told: a VMM without a VM."""

    def __init__(self, path: Path, *, pieces: Sequence[tuple[int, int]] = (), flags: int = mmap.MAP_PRIVATE) -> None:
        self._connection, theirs = Pipe()

        def serve() -> None:
            self._connection.close()
            _Mapped(path, pieces or ((0, path.stat().st_size),), flags).serve(theirs)

        self.pid = fork(serve)
        theirs.close()
        self._ask("ready")
        self.vmm = identity(self.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        os.waitpid(self.pid, 0)
        self._connection.close()

    def end(self) -> None:
        """Kill it and wait until it is a zombie."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def write(self, offset: int, data: bytes) -> None:
        self._ask("write", offset, data)

    def read(self) -> bytes:
        """All that it sees, in file order."""
        view = self._ask("read")
        assert isinstance(view, bytes)
        return view

    def advise(self, offset: int, length: int, advice: int) -> None:
        self._ask("advise", offset, length, advice)

    def _ask(self, *request: object) -> object:
        self._connection.send(request)
        assert self._connection.poll(ANSWER_S), "the mapping process does not answer"
        return self._connection.recv()


class _Mapped:
    """The child's side of ``Mapper``."""

    def __init__(self, path: Path, pieces: Sequence[tuple[int, int]], flags: int) -> None:
        fd = os.open(path, os.O_RDWR if flags & mmap.MAP_SHARED else os.O_RDONLY)
        self._pieces = [(offset, mmap.mmap(fd, length, flags, offset=offset)) for offset, length in pieces]
        os.close(fd)

    def serve(self, connection: Connection) -> None:
        while True:
            verb, *arguments = connection.recv()
            connection.send(getattr(self, verb)(*arguments))

    def ready(self) -> None:
        pass

    def write(self, offset: int, data: bytes) -> None:
        piece, start = self._find(offset)
        piece[offset - start : offset - start + len(data)] = data

    def read(self) -> bytes:
        return b"".join(piece[:] for _, piece in sorted(self._pieces, key=lambda piece: piece[0]))

    def advise(self, offset: int, length: int, advice: int) -> None:
        piece, start = self._find(offset)
        piece.madvise(advice, offset - start, length)

    def _find(self, offset: int) -> tuple[mmap.mmap, int]:
        return next((piece, start) for start, piece in self._pieces if start <= offset < start + len(piece))


def _say_ready_and_stay(writer: int) -> NoReturn:
    os.write(writer, b"r")
    while True:
        signal.pause()


def _end_with(function: Callable[[], Any], parent: int) -> NoReturn:
    helpers.die_with_parent(parent)
    status = 1
    try:
        function()
        status = 0
    except EOFError:
        status = 0  # the test has ended
    except BaseException:  # noqa: BLE001 - nothing may return into the test that forked us
        traceback.print_exc()
    finally:
        os._exit(status)
