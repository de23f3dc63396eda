"""A guest that has booted once and sleeps: what it is then is files, and to put those into a store costs a tenth of a boot."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ramet import Host
from ramet.model import MIB, Hypervisor, InstanceInfo
from tests import guest_images

MARKS = "echo disk-source >/data/mark; echo ram-source >/ram/mark; sync"
MEMORY_MIB = 256
DISK_BYTES = 64 * MIB


@dataclass(frozen=True, slots=True)
class Kept:
    """A store with one instance, ``web``, which sleeps on its first snapshot and has a mark on its disk and one in its memory."""

    home: Path
    info: InstanceInfo

    def put_into(self, host: Host, name: str = "web") -> InstanceInfo:
        """Have it in another store on the same file system, under that name, as if it had been made and put to standby there.

        The files are clones, or sparse copies, with the modes and times of those that are kept.
        """
        assert self.info.snapshot is not None
        for place, found in (("snapshots", self.info.snapshot.id), ("instances", self.info.id)):
            source = self.home / place / found
            subprocess.run(
                ["cp", "--archive", "--reflink=auto", "--sparse=always", source, host.home / place], check=True
            )
        if name != "web":
            path = host.home / "instances" / self.info.id / "instance.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), "name": name}))
        (host.home / "names" / "instances" / name).write_text(f"{self.info.id}\n")
        return host.get(name)


def write_out(directory: Path) -> None:
    """Have copied files on the disk: ext4 allocates their blocks, and those of their extents, only when it writes them."""
    for path in directory.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())


def keep(
    home: Path, *, memory_mib: int = MEMORY_MIB, hypervisor: Hypervisor = Hypervisor.QEMU, workload: str = ""
) -> Kept:
    """Boot one in a new store, begin its workload, and put it to standby."""
    host = Host(guest_images.give(home))
    host.create("web", memory_mib=memory_mib, disk_bytes=DISK_BYTES, hypervisor=hypervisor)
    result = host.exec("web", ["sh", "-c", f"{MARKS}; {workload}"])
    assert result.exit_status == 0
    return Kept(home, host.standby("web"))
