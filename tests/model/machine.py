"""A VM that is played: a real process with the guest's memory, and the guest, its disk and its devices in the test's process.

The memory is a private mapping of the file that the launch names (``vmm.c``), read and written through /proc/PID/mem. So what the
guest writes becomes a private page of its VMM, what it has not written shows through from the file, and all of it goes with
the process. The disk is an open file. What the guest has written to it and not synced is in its page cache, which a kill loses.
"""

from __future__ import annotations

import os
import select
import signal
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ramet import process
from ramet.errors import LaunchError
from ramet.hypervisors.base import LaunchSpec
from ramet.model import MIB, PAGE_BYTES, VmmProcess

MEMORY_MIB = 1
DISK_BYTES = 16 * PAGE_BYTES
RAM_PAGES = (3, 64, 65, 255)
"""Where the guest's words are in its memory: the last page among them, and two that are neighbours."""
DISK_BLOCKS = (0, 5, 15)
END_MS = 10_000
POWERED_OFF = "the guest has powered off\n"
_WORD = struct.Struct("<Q")
_STATE = b"device state "
_FROZEN_AT = 0
_GENERATION_AT = 8
_HOST_NAME_AT = 64
_HOST_NAME_BYTES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """All that a guest holds: a model of it is one of these."""

    ram: tuple[int, ...] = (0,) * len(RAM_PAGES)
    disk: tuple[int, ...] = (0,) * len(DISK_BLOCKS)
    register: int = 0
    """In a vCPU, so in the device state and nowhere else."""


def words_of(fields: dict[str, Any]) -> Words:
    """From JSON."""
    return Words(ram=tuple(fields["ram"]), disk=tuple(fields["disk"]), register=fields["register"])


def words_in_memory(fd: int, address: int = 0) -> tuple[int, ...]:
    """The words in guest memory that begins at ``address`` of a file."""
    return tuple(_word_at(fd, address + page * PAGE_BYTES) for page in RAM_PAGES)


def words_on_disk(fd: int) -> tuple[int, ...]:
    """The words in a disk file."""
    return tuple(_word_at(fd, block * PAGE_BYTES) for block in DISK_BLOCKS)


def register_in(device_state: bytes) -> int:
    """What a device state holds."""
    return int(_WORD.unpack(device_state.removeprefix(_STATE))[0])


def _word_at(fd: int, offset: int) -> int:
    return int(_WORD.unpack(os.pread(fd, _WORD.size, offset))[0])


class Machine:
    """A VMM's process and the guest in it; begins with its vCPUs stopped."""

    def __init__(self, program: Path, spec: LaunchSpec, *, memory: Path | None, opens_for_writing: bool) -> None:
        self.spec = spec
        self.size_bytes = spec.hardware.memory_mib * MIB
        self.vcpus_run = False
        self.register = 0
        self.dirty: set[int] = set()
        """The pages written since the last capture, by number, for a VMM that keeps such a log."""
        self.loses_next_capture = False
        self._unsynced: dict[int, int] = {}
        self.vmm, self._address = _launch(program, spec, memory, self.size_bytes, opens_for_writing)
        self._memory_fd = os.open(f"/proc/{self.vmm.pid}/mem", os.O_RDWR | os.O_CLOEXEC)
        self._disk_fd = os.open(spec.disk, os.O_RDWR | os.O_CLOEXEC)

    def close(self) -> None:
        """End the process, if it has not ended, and forget the guest."""
        process.kill_and_wait(self.vmm)
        for fd in (self._memory_fd, self._disk_fd):
            os.close(fd)

    def is_alive(self) -> bool:
        """Whether there is memory to read: none is once the process has ended, reaped or not."""
        return bool(os.pread(self._memory_fd, 1, self._address))

    def kill(self) -> None:
        """SIGKILL from outside; returns when the process has ended. It may be a zombie: we reap it when we look next."""
        pidfd = os.pidfd_open(self.vmm.pid)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            assert poll.poll(END_MS), f"process {self.vmm.pid} is still there after SIGKILL"
        finally:
            os.close(pidfd)

    # -- memory -----------------------------------------------------------------------------------------------

    def read_memory(self, offset: int, length: int) -> bytes:
        return os.pread(self._memory_fd, length, self._address + offset)

    def write_memory(self, offset: int, data: bytes) -> None:
        """Within one page."""
        assert os.pwrite(self._memory_fd, data, self._address + offset) == len(data)
        self.dirty.add(offset // PAGE_BYTES)

    @property
    def is_frozen(self) -> bool:
        """Whether the workload is. The mark is in the guest's memory: a restored guest is as frozen as it was when captured."""
        return self.read_memory(_FROZEN_AT, 1) == b"\1"

    # -- what the guest does ------------------------------------------------------------------------------------

    def words(self) -> Words:
        """What the guest sees."""
        disk = list(words_on_disk(self._disk_fd))
        for index, value in self._unsynced.items():
            disk[index] = value
        return Words(ram=words_in_memory(self._memory_fd, self._address), disk=tuple(disk), register=self.register)

    def write(self, words: Words, *, instead_of: Words) -> None:
        """The words that differ; a page whose words do not is not touched."""
        for page, old, new in zip(RAM_PAGES, instead_of.ram, words.ram, strict=True):
            if old != new:
                self.write_memory(page * PAGE_BYTES, _WORD.pack(new))
        for index, (old, new) in enumerate(zip(instead_of.disk, words.disk, strict=True)):
            if old != new:
                self._unsynced[index] = new
        self.register = words.register

    def sync(self) -> None:
        for index, value in self._unsynced.items():
            os.pwrite(self._disk_fd, _WORD.pack(value), DISK_BLOCKS[index] * PAGE_BYTES)
        self._unsynced.clear()

    def quiesce(self) -> None:
        self.sync()
        self.write_memory(_FROZEN_AT, b"\1")

    def thaw(self) -> None:
        self.write_memory(_FROZEN_AT, b"\0")

    def identify(self, generation: int, host_name: bytes) -> None:
        self.write_memory(_GENERATION_AT, _WORD.pack(generation))
        self.write_memory(_HOST_NAME_AT, host_name.ljust(_HOST_NAME_BYTES, b"\0"))

    def identity(self) -> tuple[int, str]:
        """The generation and the host name that it was given last."""
        name = self.read_memory(_HOST_NAME_AT, _HOST_NAME_BYTES).rstrip(b"\0").decode()
        return _WORD.unpack(self.read_memory(_GENERATION_AT, _WORD.size))[0], name

    def power_off(self) -> None:
        """Shut down in order, and end the VMM."""
        self.sync()
        with self.spec.vmm_log.open("a") as log:
            log.write(POWERED_OFF)
        self.kill()

    # -- what the VMM does ----------------------------------------------------------------------------------------

    def device_state(self) -> bytes:
        assert not self.vcpus_run, "the device state of a guest that runs was asked for"
        return _STATE + _WORD.pack(self.register)

    def load_device_state(self, path: Path) -> None:
        self.register = register_in(path.read_bytes())


LIFE = os.pipe()
"""Nothing is ever written to it: who reads it hears of our end."""


def _launch(
    program: Path, spec: LaunchSpec, memory: Path | None, size_bytes: int, opens_for_writing: bool
) -> tuple[VmmProcess, int]:
    """Start the process; returns it and the address of the guest's memory in it."""
    ready, theirs = os.pipe()
    how = "w" if opens_for_writing else "r"
    argv = [str(program), str(memory or "-"), str(size_bytes), how, str(theirs), str(LIFE[0])]
    try:
        try:
            vmm = process.spawn(
                argv, log_path=spec.vmm_log, pass_fds=(theirs, LIFE[0]), cwd=spec.work_dir, mark=spec.run_dir
            )
        finally:
            os.close(theirs)
        said = os.read(ready, 8)
    finally:
        os.close(ready)
    if len(said) != 8:
        process.kill_and_wait(vmm)
        raise LaunchError("The played VMM has ended.", argv=argv, status=process.exit_status(vmm), log_tail="")
    return vmm, int.from_bytes(said, "little")
