"""The contract of a driver."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from ramet.model import Accelerator, VmmBuild, VmmProcess


class DirtySince(StrEnum):
    """What a VMM's dirty pages are relative to."""

    MAPPED = "mapped"
    """To the file that it maps: they stay until it exits (QEMU)."""
    LAST_CAPTURE = "last-capture"
    """To its last successful capture, which clears them, even if the file is lost afterwards (Firecracker)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What the guest sees."""

    memory_mib: int
    cpus: int
    accelerator: Accelerator


@dataclass(frozen=True, slots=True, kw_only=True)
class BootFiles:
    """What a first boot loads: kernel (an ELF), initramfs and command line of an image; how often its kernel ticks, if known."""

    kernel: Path
    initrd: Path
    cmdline: str
    tick_hz: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
    """Everything a driver needs to start a VMM; ``boot`` for a first boot, ``vmstate`` for a restore, never both."""

    instance_id: str
    name: str
    hardware: Hardware
    memory: Path
    """Mapped MAP_PRIVATE; its size is the guest's RAM."""
    disk: Path
    work_dir: Path
    """Of the live files that the VMM writes; beside them it makes sockets in ``run_dir``, and its logs. Its
    parent is the VMM's working directory: a path that a VMM is told is relative to it, or of a descriptor that it inherits.
    """
    run_dir: Path
    vmm_log: Path
    console_log: Path
    boot: BootFiles | None = None
    vmstate: Path | None = None
    snapshot_of: str | None = None
    """The instance whose snapshot it is that is loaded; None: its own. Others may map the same."""
    memory_is_sealed: bool = False
    """``memory`` is a descriptor of a file in RAM that nobody can write, whatever it is opened for."""


class Monitor(Protocol):
    """A live VMM's control connection; a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def stop_vcpus(self) -> None:
        """Stop the vCPUs; pending disk writes reach the host file."""

    def resume_vcpus(self) -> None: ...

    def vcpus_running(self) -> bool: ...


@runtime_checkable
class SavesDeviceState(Monitor, Protocol):
    """A monitor of a VMM whose memory is read from outside (``DirtySince.MAPPED``)."""

    def save_device_state(self, path: Path) -> None:
        """Write the device state, without RAM, of a stopped VMM to ``path`` (under its ``work_dir``)."""


@runtime_checkable
class SavesMemory(Monitor, Protocol):
    """A monitor of a VMM that writes its memory itself (``DirtySince.LAST_CAPTURE``)."""

    def create_snapshot(self, *, vmstate: str, memory: str, diff: bool) -> None:
        """Write device state and memory of a stopped VMM; ``diff``: what was dirtied since the last time, in place, onto what
        ``memory`` holds already. Paths are relative to the parent of its ``work_dir``.

        Raises:
            VmmError: what has become of the dirty pages is unknown then.
        """


class Driver(Protocol):
    """One per VMM."""

    dirty_since: DirtySince

    @property
    def opens_memory_read_only(self) -> bool:
        """Whether the VMM's descriptor of its memory file cannot write: then it may map a snapshot itself.

        Raises:
            UnsupportedError: if that depends on the VMM's version, and it is not installed.
        """

    def build(self, hardware: Hardware) -> VmmBuild:
        """What a snapshot taken by this host's VMM on that hardware can be loaded by.

        Raises:
            UnsupportedError: if the VMM is not installed or too old.
        """

    def boot(self, spec: LaunchSpec) -> VmmProcess:
        """Start a VMM that boots the guest; returns with the guest running.

        Raises:
            HostError: if a file that it needs cannot be opened; nothing was started.
            LaunchError: with argv and the log; no process is left.
        """

    def load(self, spec: LaunchSpec) -> VmmProcess:
        """Start a VMM with the snapshot's device state and memory; returns with it loaded and its vCPUs stopped.

        Raises:
            HostError: if a file that it needs cannot be opened; nothing was started.
            LaunchError: with argv and the log; no process is left.
        """

    def connect(self, run_dir: Path, *, deadline_s: float = 10.0) -> SavesDeviceState | SavesMemory:
        """Connect to a live VMM's control socket.

        Raises:
            VmmDiedError: if nobody listens.
        """

    def log_of(self, vmm_log: Path) -> Path:
        """What the VMM itself logs of its life: ``vmm_log`` or a file beside it. In ``vmm_log`` are its command lines and what it
        said on stderr.
        """

    def ended_by_guest(self, run_dir: Path, vmm_log: Path) -> bool:
        """Whether a VMM that is gone ended because its guest powered off or rebooted, rather than died."""
