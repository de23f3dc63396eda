"""The model: what each instance must see, what each snapshot must hold, and which snapshots must be there. It knows no file."""

from __future__ import annotations

from dataclasses import dataclass, field

from ramet.model import Ancestor, Hypervisor, State
from tests.model.machine import Words

LIVE = (State.RUNNING, State.PAUSED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A snapshot: whose, and what it holds."""

    id: str
    owner_id: str
    owner_name: str
    hypervisor: Hypervisor
    words: Words


@dataclass(slots=True, kw_only=True)
class Expected:
    """An instance."""

    id: str
    name: str
    hypervisor: Hypervisor
    lineage: tuple[Ancestor, ...] = ()
    state: State = State.STOPPED
    words: Words = field(default_factory=Words)
    """What the guest sees; of one that is not live, ``disk`` alone means something."""
    synced: tuple[int, ...] = Words().disk
    """What of its disk has reached the file."""
    generation: int = 0
    shares: bool = False
    """It was forked under the memory policy ``share``."""
    snapshot: Taken | None = None
    """What it sleeps on; of a live one, what it woke from."""
    mapped: Taken | None = None
    base: Taken | None = None
    found_by_next_verb: tuple[Taken, ...] = ()
    """What the record of an instance whose VMM has gone still names, until the next verb on it."""
    pending: bool = False
    """A verb on it has failed and left its mark: the next one, even if it only reads, tidies up after it."""
    record_is_behind: bool = False
    """The next verb on it, even one that is refused, mends its record first."""

    @property
    def live(self) -> bool:
        return self.state in LIVE

    def may_wake_from(self, taken: Taken) -> bool:
        """Its own, or the one that it was forked from and shares."""
        return taken.owner_id == self.id or (self.shares and taken.id == self.lineage[-1].snapshot_id)

    def refers_to(self, *, settled: bool = False) -> tuple[Taken, ...]:
        """The snapshots that must be there on its account; ``settled``: after the next verb on it."""
        found = tuple(one for one in (self.snapshot, self.mapped, self.base) if one is not None)
        return found if settled else found + self.found_by_next_verb

    # -- what becomes of it ---------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Whoever freezes a guest, or shuts it down, has it sync."""
        self.synced = self.words.disk

    def boot(self) -> None:
        """A fresh start of the disk: memory is zeros."""
        self._refer_to(None)
        self.state = State.RUNNING
        self.words = Words(disk=self.synced)
        self.generation += 1

    def sleep(self, taken: Taken) -> None:
        self.sync()
        self._refer_to(None)
        self.state = State.STANDBY
        self.snapshot = taken

    def wake(self, taken: Taken) -> None:
        """From the snapshot that it sleeps on, or back to another: memory, disk and device state of one instant."""
        self._refer_to(taken)
        self.state = State.RUNNING
        self.words = taken.words
        self.synced = taken.words.disk
        self.generation += 1

    def give_up(self) -> None:
        """Live, it was ended for a rollback that then failed: its disk is left, as after a power cut."""
        self._refer_to(None)
        self.state = State.STOPPED

    def stop(self) -> None:
        """Memory is given up, the disk stays: of one that slept, the disk that it slept with."""
        if self.snapshot is not None and self.state is State.STANDBY:
            self.synced = self.snapshot.words.disk
        self._refer_to(None)
        self.state = State.STOPPED

    def lose_vmm(self, *, in_order: bool) -> None:
        """Its VMM has gone, and no verb has looked yet: killed, or after its guest has powered off ``in_order``."""
        self.found_by_next_verb = self.refers_to()
        self.record_is_behind = True
        self.mapped = self.base = None
        if in_order:
            self.sync()
            self.snapshot = None
        self.state = State.STOPPED if in_order else State.FAILED

    def settle(self) -> None:
        """A verb has locked it and seen what is true."""
        self.found_by_next_verb = ()
        self.record_is_behind = self.pending = False

    def fail(self) -> None:
        """A verb on it has failed: nothing is lost."""
        self.settle()
        self.record_is_behind = self.pending = True

    def _refer_to(self, taken: Taken | None) -> None:
        self.snapshot = self.mapped = self.base = taken
        self.settle()


@dataclass(slots=True, kw_only=True)
class World:
    """All of a store."""

    instances: dict[str, Expected] = field(default_factory=dict)
    names: dict[str, Taken] = field(default_factory=dict)
    """Of snapshots."""
    given_up_for: list[Taken] = field(default_factory=list)
    """What a live instance was given up for in vain: nothing refers to it, and it is all that is left."""

    def snapshots(self, *, after_a_verb_on: Expected | None = None) -> dict[str, Taken]:
        """Every snapshot that must be there, by id, and no other may be; in an order that does not depend on the ids."""
        found = [*self.given_up_for, *self.names.values()]
        for expected in self.instances.values():
            found += expected.refers_to(settled=expected is after_a_verb_on)
        return {taken.id: taken for taken in found}

    def gave_up_for(self, taken: Taken) -> None:
        """A live instance was given up for it, in vain."""
        if taken.id not in self.snapshots():
            self.given_up_for.append(taken)

    def no_longer_left(self, taken: Taken) -> None:
        """It is used again, or removed."""
        self.given_up_for = [one for one in self.given_up_for if one is not taken]

    def owner(self, taken: Taken) -> Expected:
        """The instance that a snapshot was taken of, or one as it would be if that is gone."""
        for expected in self.instances.values():
            if expected.id == taken.owner_id:
                return expected
        return Expected(id=taken.owner_id, name=taken.owner_name, hypervisor=taken.hypervisor)
