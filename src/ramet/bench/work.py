"""What a benchmark works with: the store, the guest that is measured, how much is to be measured, and the peers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field

from ramet.bench import libvirt
from ramet.bench.place import Place, Say
from ramet.bench.results import Figure
from ramet.bench.source import Source, filled_mib, source
from ramet.model import Hypervisor, MemoryPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured."""

    name: str
    rounds: int
    """Of what takes a second or less."""
    slow_rounds: int
    forks: int
    """At once."""
    sharers: int
    """Forks that all read their memory."""
    dirty_mib: Sequence[int]
    """Written before a sleep."""
    sleeps: Sequence[int]
    """After so many sleeps it is looked what forks cost."""
    writes: int
    """Sleeps after which what the device was given is counted."""
    sizes_mib: Sequence[int]
    """Of dirtied memory."""


QUICK = Plan(
    name="quick",
    rounds=5,
    slow_rounds=2,
    forks=16,
    sharers=4,
    dirty_mib=(1, 64),
    sleeps=(1, 10),
    writes=5,
    sizes_mib=(256, 512),
)
FULL = Plan(
    name="full",
    rounds=12,
    slow_rounds=4,
    forks=64,
    sharers=25,
    dirty_mib=(1, 16, 64),
    sleeps=(1, 10, 25, 50),
    writes=25,
    sizes_mib=(256, 512, 1024, 2048, 4096),
)


@dataclass(slots=True, kw_only=True)
class Work:
    """One run. The guest is booted when the first benchmark asks for it, and is left for the next one."""

    place: Place
    plan: Plan
    hypervisor: Hypervisor
    memory_mib: int
    memory_policy: MemoryPolicy
    peers: frozenset[str]
    """The names of those that are compared with."""
    say: Say
    stack: ExitStack = field(default_factory=ExitStack)
    _source: Source | None = None

    def source(self) -> Source:
        """The guest, in whatever state it is: running, if nobody has put it to sleep."""
        if self._source is None:
            self._source = self.stack.enter_context(
                source(self.place, self.memory_mib, self.hypervisor, self.memory_policy, self.say)
            )
        return self._source

    def sleeper(self) -> Source:
        """The guest, asleep."""
        found = self.source()
        found.put_to_sleep()
        return found

    def libvirt_guest(self) -> AbstractContextManager[libvirt.Domain]:
        """A guest of libvirt's, with as much memory and as much of it filled."""
        image_dir, image = self.place.image()
        return libvirt.guest(self.place.scratch, image_dir, image, self.memory_mib, filled_mib(self.memory_mib))


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """Something that is measured. It may raise ``UnsupportedError`` where the host has not what it takes, and ``NoSpaceError``
    where there is too little room; then the others are run all the same.
    """

    name: str
    summary: str
    measure: Callable[[Work], Sequence[Figure]]
