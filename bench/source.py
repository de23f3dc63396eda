"""The guest that is measured: booted by Ramet, more than half of its RAM dirty, most of that with bytes that do not compress."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.floor import Asleep
from bench.place import Place
from ramet import Host
from ramet.errors import GuestError
from ramet.hypervisors.base import Hardware
from ramet.model import MIB, Accelerator

AGAIN_MIB = 64
"""Of what is filled, the part that is written again for a second standby."""
KERNEL_MIB = 24
"""What a booted guest has dirtied at least, before anything is filled; half of RAM less this leaves it room to live in."""
BULK, AGAIN = "/ram/bulk", "/ram/again"
READ_ALL = ("sh", "-c", f"ramet-fill --sum {BULK} && ramet-fill --sum {AGAIN}")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One guest of one store."""

    host: Host
    place: Place
    name: str
    memory_mib: int

    @property
    def setting(self) -> str:
        return f"{self.place.setting}, {self.memory_mib} MiB guest, {_bulk_mib(self.memory_mib) + AGAIN_MIB} MiB filled"

    @property
    def stream(self) -> Path:
        """Where the peer keeps this guest."""
        return self.place.scratch / f"{self.name}.stream"

    def run(self, *argv: str) -> None:
        """Run a command in the guest, which must succeed."""
        done = self.host.exec(self.name, argv)
        if done.exit_status != 0:
            raise GuestError(f"{argv} ended with status {done.exit_status}: {done.stderr.decode(errors='replace')}")

    def fill(self, path: str, mib: int, seed: int) -> None:
        """Fill (or fill again, in place) a file in the guest's RAM."""
        self.run("ramet-fill", path, str(mib * MIB), str(seed))

    def hardware(self) -> Hardware:
        info = self.host.get(self.name)
        return Hardware(memory_mib=info.memory_mib, cpus=info.cpus, accelerator=info.accelerator or Accelerator.TCG)

    def snapshot_dir(self) -> Path:
        """Of the snapshot that it sleeps on."""
        snapshot = self.host.get(self.name).snapshot
        if snapshot is None:
            raise GuestError(f"{self.name} sleeps on no snapshot.")
        return Path(snapshot.dir)

    def asleep(self, *, own_memory: bool = False) -> Asleep:
        """What it takes to wake it by hand."""
        found = self.snapshot_dir()
        return Asleep(
            hardware=self.hardware(),
            disk=found / "disk.raw",
            state=found / "vmstate",
            memory=found / "memory",
            own_memory=own_memory,
        )


@contextmanager
def source(place: Place, memory_mib: int, say: Say) -> Iterator[Source]:
    """A running guest; gone after the block, with all that it left."""
    host = place.host()
    made = Source(host=host, place=place, name=f"bench-{memory_mib}", memory_mib=memory_mib)
    say(f"booting and filling a guest of {memory_mib} MiB")
    host.create(made.name, memory_mib=memory_mib)
    try:
        made.fill(BULK, _bulk_mib(memory_mib), seed=1)
        made.fill(AGAIN, AGAIN_MIB, seed=2)
        yield made
    finally:
        host.remove(made.name, force=True)
        for path in place.scratch.glob(f"{made.name}.*"):
            path.unlink()


def _bulk_mib(memory_mib: int) -> int:
    return memory_mib // 2 - KERNEL_MIB - AGAIN_MIB
