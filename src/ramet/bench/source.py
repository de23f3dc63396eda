"""The guest that is measured: booted by Ramet, and much of its RAM dirty with bytes that do not compress."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ramet.bench import hand, stream
from ramet.bench.hand import Asleep
from ramet.bench.place import Place, Say
from ramet.errors import GuestError
from ramet.hypervisors.base import Hardware
from ramet.hypervisors.qemu import driver as qemu
from ramet.instances.host import Host
from ramet.model import MIB, Accelerator, Hypervisor, MemoryPolicy, State

AGAIN_MIB = 64
"""Of what is filled, the part that is written again for a second standby."""
KERNEL_MIB = 24
"""What a booted guest has dirtied at least, before anything is filled; half of RAM less this leaves it room to live in."""
BULK, AGAIN = "/ram/bulk", "/ram/again"
READ_ALL = ("sh", "-c", f"ramet-fill --sum {BULK} && ramet-fill --sum {AGAIN}")
GUEST_TIMEOUT_S = 600.0
MEMORY_MIN_MIB = 224
"""Less would leave the guest nothing to fill."""


def filled_mib(memory_mib: int) -> int:
    """What is filled of a guest's memory: more than half of it is dirty then."""
    return memory_mib // 2 - KERNEL_MIB


@dataclass(slots=True, kw_only=True)
class Source:
    """One guest of the store. ``memory_policy`` is that of its forks."""

    place: Place
    name: str
    memory_mib: int
    hypervisor: Hypervisor
    memory_policy: MemoryPolicy

    @property
    def host(self) -> Host:
        """The store that it is in."""
        return self.place.host

    @property
    def setting(self) -> str:
        """In words: what a figure of it depends on."""
        method = "reflink" if self.place.reflinks else "copy"
        return f"{self.memory_mib} MiB guest, {filled_mib(self.memory_mib)} MiB filled, {method}"

    def run(self, *argv: str) -> None:
        """Run a command in the guest.

        Raises:
            GuestError: if it did not end with status 0.
        """
        done = self.host.exec(self.name, argv, timeout_s=GUEST_TIMEOUT_S)
        if done.exit_status != 0:
            told = done.stderr.decode(errors="replace").strip()
            raise GuestError(f"In the guest, {' '.join(argv)!r} ended with status {done.exit_status}: {told}")

    def fill(self, path: str, mib: int, seed: int) -> None:
        """Fill (or fill again, in place) a file in the guest's RAM."""
        self.run("ramet-fill", path, str(mib * MIB), str(seed))

    def put_to_sleep(self) -> None:
        """Let it sleep, whatever it does now."""
        if self.host.get(self.name).state is not State.STANDBY:
            self.host.standby(self.name)

    def hardware(self) -> Hardware:
        """What the guest sees."""
        info = self.host.get(self.name)
        return Hardware(memory_mib=info.memory_mib, cpus=info.cpus, accelerator=info.accelerator or Accelerator.TCG)

    def snapshot_dir(self) -> Path:
        """Of the snapshot that it sleeps on.

        Raises:
            GuestError: if it sleeps on none.
        """
        snapshot = self.host.get(self.name).snapshot
        if snapshot is None:
            raise GuestError(f"{self.name} sleeps on no snapshot.")
        return Path(snapshot.dir)

    def asleep(self, *, own_memory: bool) -> Asleep:
        """What it takes to wake it by hand, until it has slept again."""
        found = self.snapshot_dir()
        memory = found / "memory"
        if not own_memory and self._opens_for_writing() and not os.access(memory, os.W_OK):
            memory = (
                self.place.scratch / f"{self.name}.memory"
            )  # that QEMU would be refused the snapshot's, which is 0400
            hand.clone_or_copy(found / "memory", memory)
        return Asleep(
            hypervisor=self.hypervisor,
            hardware=self.hardware(),
            disk=found / "disk.raw",
            state=found / "vmstate",
            memory=memory,
            own_memory=own_memory,
        )

    def _opens_for_writing(self) -> bool:
        return self.hypervisor is Hypervisor.QEMU and not qemu.opens_memory_read_only(qemu.program())

    def streamed(self) -> Asleep:
        """The same guest as a migration stream, which is saved if it has not been: then it ends up asleep."""
        path = self.stream_path
        if not path.exists():
            self.host.restore(self.name)
            self.save_stream()
            self.host.standby(self.name)
        return Asleep(
            hypervisor=self.hypervisor,
            hardware=self.hardware(),
            disk=stream.disk_of(path),
            state=path,
            memory=None,
        )

    @property
    def stream_path(self) -> Path:
        """Where the migration stream is kept."""
        return self.place.scratch / f"{self.name}.stream"

    def save_stream(self) -> float:
        """Save the running guest as a migration stream, beside Ramet; seconds."""
        info = self.host.get(self.name)
        assert info.live_disk is not None
        return stream.save(Path(info.run_dir), Path(info.live_disk), self.stream_path)


@contextmanager
def source(
    place: Place, memory_mib: int, hypervisor: Hypervisor, memory_policy: MemoryPolicy, say: Say
) -> Iterator[Source]:
    """A running guest; gone after the block, with all that it left."""
    made = Source(
        place=place,
        name=f"bench-{memory_mib}",
        memory_mib=memory_mib,
        hypervisor=hypervisor,
        memory_policy=memory_policy,
    )
    say(f"booting and filling a guest of {memory_mib} MiB")
    place.host.create(made.name, memory_mib=memory_mib, hypervisor=hypervisor)
    try:
        made.fill(BULK, filled_mib(memory_mib) - AGAIN_MIB, seed=1)
        made.fill(AGAIN, AGAIN_MIB, seed=2)
        yield made
    finally:
        place.host.remove(made.name, force=True)
        for path in place.scratch.glob(f"{made.name}.*"):
            path.unlink()
