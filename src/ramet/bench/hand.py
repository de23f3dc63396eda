"""What the raw mechanism is given and gives: a guest at rest, a guest awake; and its way to derive a file and to start a VMM."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ramet import process
from ramet.bench import raw
from ramet.bench.samples import Watch
from ramet.errors import host_errors
from ramet.hypervisors.base import Hardware
from ramet.linux.reflink import FICLONE
from ramet.model import Hypervisor
from ramet.signals import signals_held


@dataclass(frozen=True, slots=True, kw_only=True)
class Asleep:
    """A guest at rest: what it takes to wake it by hand."""

    hypervisor: Hypervisor
    hardware: Hardware
    disk: Path
    state: Path
    """Device state alone, or a whole migration stream if there is no ``memory``."""
    memory: Path | None
    own_memory: bool = False
    """Map a clone (or copy) of ``memory``, as Ramet does where it keeps the VMM off the snapshot's own inode."""


@dataclass(slots=True, kw_only=True)
class Awake:
    """A guest that was woken: its agent, the clock that runs since the request, and how long each step took."""

    agent: raw.Agent
    pid: int
    clock: Watch
    steps: dict[str, float]


@contextmanager
def directory_in(scratch: Path) -> Iterator[Path]:
    """A directory for one VMM; gone after the block.

    Raises:
        HostError: if it cannot be made.
    """
    with host_errors(f"make a directory in {scratch}"):
        made = TemporaryDirectory(dir=scratch)
    with made as name:
        yield Path(name)


def start(stack: ExitStack, argv: Sequence[str], cwd: Path, *, pass_fds: Sequence[int] = (), log: Path) -> int:
    """Start a VMM that is killed when ``stack`` ends; its pid. Nothing confines it.

    Raises:
        HostError: if it cannot be started.
    """
    with signals_held(), host_errors(f"start {argv[0]}"), log.open("ab") as stream:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            pass_fds=pass_fds,
            cwd=cwd,
            env={**os.environ, process.VMM_MARK: str(cwd)},  # so that the next run finds it, if we are killed
            start_new_session=True,
        )
        stack.callback(child.wait)
        stack.callback(child.kill)
    return child.pid


def clone_or_copy(src: Path, dst: Path) -> None:
    """A reflink where there are any, else the data without the holes.

    Raises:
        HostError: if neither can be had.
    """
    with host_errors(f"copy {src}"), src.open("rb") as source, dst.open("wb") as target:
        try:
            fcntl.ioctl(target, FICLONE, source.fileno())
        except OSError:
            os.ftruncate(target.fileno(), os.fstat(source.fileno()).st_size)
            _copy_data(source.fileno(), target.fileno())


def _copy_data(src: int, dst: int) -> None:
    position, size = 0, os.fstat(src).st_size
    while position < size:
        try:
            position = os.lseek(src, position, os.SEEK_DATA)
        except OSError as err:
            if err.errno != errno.ENXIO:  # no data after it
                raise
            return
        end = os.lseek(src, position, os.SEEK_HOLE)
        while position < end:
            position += os.copy_file_range(src, dst, end - position, offset_src=position, offset_dst=position)
