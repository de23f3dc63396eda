"""Where and on what it is measured: the file systems, the host, and the peers that are not here."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ramet import Host
from ramet.hypervisors import kvm
from ramet.hypervisors.qemu import driver
from ramet.store.derive import probe_reflink
from tools import loopfs

DISK_MIB = 10 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A directory on one file system, with a store of its own in it and room for the files of the peers."""

    file_system: str
    directory: Path
    reflinks: bool

    @property
    def setting(self) -> str:
        return f"{self.file_system}, {'reflink' if self.reflinks else 'copy'}"

    @property
    def scratch(self) -> Path:
        return self.directory / "scratch"

    def host(self) -> Host:
        return Host(self.directory / "home")


@contextmanager
def place(kind: str, home: Path | None) -> Iterator[Place]:
    """A fresh ``kind`` of file system on a loop device, or a directory under ``home``; gone after the block."""
    if home is None:
        with loopfs.loopfs(kind, size_mib=DISK_MIB, sparse=False) as mount:
            yield _prepare(kind, mount)
        return
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=home) as directory:
        yield _prepare(f"{kind} of {home}", Path(directory))


def kinds(home: Path | None, wanted: Sequence[str]) -> list[str]:
    """The file systems to measure: those wanted on loop devices, or just the one that ``home`` is on.

    Raises:
        SystemExit: if loop devices cannot be mounted and no home was given.
    """
    if home is not None:
        return ["file system"]
    why = loopfs.why_not()
    if why is not None:
        raise SystemExit(f"bench: {why}; give it a directory: python -m bench --home DIRECTORY")
    return list(wanted)


def describe_host() -> dict[str, str]:
    """What every figure depends on."""
    return {
        "host": f"{os.cpu_count()} cores, {_cpu_model()}, {_memory_gib():.0f} GiB",
        "kernel": platform.release(),
        "vmm": f"QEMU, {driver.version(driver.program())}",
        "accelerator": "tcg" if kvm.why_not_usable() else "kvm",
        "python": platform.python_version(),
    }


def absent_peers() -> dict[str, str]:
    """Who was not measured, and why."""
    found = {}
    why = kvm.why_not_usable()
    if why is not None:
        found["KVM"] = why
    if shutil.which("virsh") is None:
        found["libvirt"] = "virsh was not found"
    else:
        found["libvirt"] = "its save is QEMU's migration stream, which is measured here without it"
    return found


def _prepare(kind: str, directory: Path) -> Place:
    (directory / "scratch").mkdir()
    return Place(file_system=kind, directory=directory, reflinks=probe_reflink(directory) is None)


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
