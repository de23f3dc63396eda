"""What a sequence of verbs happens in: a store, its model, and the comparison of both after each step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ramet import Host
from ramet.errors import RametError
from ramet.model import Failure, Hypervisor, InstanceInfo, MemoryPolicy, State
from ramet.paths import StorePaths
from tests.model import looking
from tests.model.choosing import Step, next_step
from tests.model.expected import Expected, Taken, World
from tests.model.machine import Words

T = TypeVar("T")
INSTANCES = ("a", "b", "c", "d")
EXPECTED_PROBLEMS = (" did not end in order.", ", and its VMM has ended.", "Nothing refers to it.")
"""What a store may be told of that is whole: what the next verb mends, and what a live instance was given up for in vain."""


class Stage(Protocol):
    """A store, and what is done in it besides the verbs."""

    paths: StorePaths
    host: Host

    def create(self, name: str, hypervisor: Hypervisor) -> str:
        """A new instance; returns its id."""

    def write(self, name: str, words: Words) -> object:
        """Write in a guest that runs; returns what it saw before."""

    def power_off(self, name: str) -> None:
        """By a command in the guest; returns once its VMM has ended."""

    def kill(self, name: str) -> None:
        """The VMM; returns once it has ended."""

    def alive(self) -> list[Path]:
        """Where a VMM lives."""

    def close(self) -> None:
        """Delete the store, whatever is left in it."""


class Frame(RuleBasedStateMachine):
    """One sequence, in a store of its own."""

    hypervisors: ClassVar[list[Hypervisor]] = list(Hypervisor)
    played: ClassVar[int] = 0
    """How many sequences have come to their end in this process, with everything removed."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self._prints: dict[str, dict[str, looking.Print]] = {}
        self.acting: Stage | None = None
        self._written = 0
        self.asked: str | None = None
        """Whom the last verb was about."""
        self._is_changed = True
        """Whether a record or a name is another than at the last look."""
        self._in_order = True

    # -- the frame -----------------------------------------------------------------------------------------------

    @rule(what=st.runner().flatmap(next_step))
    def step(self, what: Step) -> None:
        """One of all that is possible."""
        what.take(self)

    def check_words(self, expected: Expected) -> None:
        """A live guest sees what it must, and writes on if the last verb was about it."""
        raise NotImplementedError

    def check_published(self, taken: Taken) -> None:
        """The files of a new snapshot hold what they must."""
        raise NotImplementedError

    @property
    def stage(self) -> Stage:
        assert self.acting is not None
        return self.acting

    def teardown(self) -> None:
        if self.acting is None:
            return
        try:
            if self._in_order:
                self._remove_all()
                Frame.played += 1
        finally:
            self.acting.close()

    def _remove_all(self) -> None:
        host = self.stage.host
        told = {problem.text for problem in host.check_store().problems}
        assert {text for text in told if not text.endswith(EXPECTED_PROBLEMS)} == set()
        for name in sorted(self.world.instances):
            host.remove(name, force=True)
            del self.world.instances[name]
            assert set(looking.snapshots(self.stage.paths)) == set(self.world.snapshots())
        for name in sorted(self.world.names):
            host.snapshot_remove(name)
        for taken in self.world.given_up_for:
            host.snapshot_remove(taken.id)
        assert looking.left_overs(self.stage.paths) == []
        assert self.stage.alive() == []

    def free_names(self) -> list[str]:
        return [name for name in INSTANCES if name not in self.world.instances]

    def live(self) -> list[str]:
        return sorted(name for name, expected in self.world.instances.items() if expected.live)

    def ways_to_say_snapshot(self) -> list[str]:
        """Names, and the place in order of age of one that has none."""
        return [*sorted(self.world.names), *(f"#{number}" for number in range(len(self.nameless())))]

    def own_snapshots(self) -> list[tuple[str, str]]:
        """Each instance that could be rolled back, with each snapshot that would take it elsewhere than a wake."""
        said = [(text, self.snapshot(text)[0]) for text in self.ways_to_say_snapshot()]
        return [
            (name, text)
            for name, expected in sorted(self.world.instances.items())
            for text, taken in said
            if expected.may_wake_from(taken) and taken is not expected.snapshot
        ]

    def nameless(self) -> list[Taken]:
        """Snapshots without a name, oldest first."""
        return [taken for taken in self.by_age() if taken not in self.world.names.values()]

    def by_age(self) -> list[Taken]:
        """Every snapshot that is there, oldest first."""
        there = self.world.snapshots()
        return [there[taken_id] for taken_id in self._prints if taken_id in there]

    def snapshot(self, said: str) -> tuple[Taken, str]:
        """The snapshot that is meant, and what a user calls it."""
        if said in self.world.names:
            return self.world.names[said], said
        taken = self.nameless()[int(said.removeprefix("#"))]
        return taken, taken.id

    def do(
        self, call: Callable[[], T], *, on: Expected | None = None, refused: type[RametError] | None = None
    ) -> T | None:
        """Do a verb that locks ``on``; if it is to be ``refused``, it changes nothing, but that ``on`` is seen as it is."""
        self._in_order = False
        self._is_changed = True
        self.asked = None if on is None else on.name
        is_mended = on is not None and on.record_is_behind
        if on is not None:
            on.settle()
        if refused is None:
            return call()
        before = looking.records(self.stage.paths)
        with pytest.raises(refused) as caught:
            call()
        assert caught.type is refused
        after = looking.records(self.stage.paths)
        if on is not None and is_mended:
            before[on.id] = after[on.id]
        assert after == before, f"{refused.__name__}, and yet something has changed"
        self._is_changed = is_mended
        return None

    # -- what is there, against the model --------------------------------------------------------------------------

    @invariant()
    def all_is_as_expected(self) -> None:
        if self.acting is None:
            return
        self._in_order = False
        if self._is_changed:
            infos = {info.name: info for info in self.stage.host.list()}
            assert set(infos) == set(self.world.instances)
            for name, info in infos.items():
                self._check_surface(info, self.world.instances[name])
        for expected in self.world.instances.values():
            self.check_words(expected)
        self._check_snapshots()
        self._in_order = True

    def _check_surface(self, info: InstanceInfo, expected: Expected) -> None:
        assert (info.id, info.state, info.hypervisor) == (expected.id, expected.state, expected.hypervisor)
        assert info.failure is (Failure.VMM_LOST if expected.state is State.FAILED else None)
        assert info.lineage == expected.lineage
        assert info.memory_policy is (MemoryPolicy.SHARE if expected.shares else MemoryPolicy.CLONE)
        assert (info.snapshot.id if info.snapshot else None) == (expected.snapshot.id if expected.snapshot else None)
        assert info.mapped_snapshot == (expected.mapped.id if expected.mapped else None)
        assert info.diff_base == (expected.base.id if expected.base else None)
        assert (info.pid is not None) == expected.live
        assert (info.live_disk is None) == (expected.state is State.STANDBY)
        if info.mapped_memory is not None and info.mapped_memory.writable:
            mapped = Path(info.mapped_memory.path).parent.name
            others = [one for one in self.world.instances.values() if one is not expected]
            needed = {taken.id for one in others for taken in one.refers_to()}
            assert mapped not in needed | {taken.id for taken in self.world.names.values()}, (
                "others need what it can write"
            )

    def next_words(self, words: Words) -> Words:
        """What a guest writes next: words that are nowhere else, in all of its pages or half of them; zeros (H10); or nothing."""
        self._written += 1
        number = self._written

        def change(old: tuple[int, ...]) -> tuple[int, ...]:
            half = len(old) // 2
            new = tuple(number * 10 + index for index in range(len(old)))
            return ((*old[:half], *new[half:]), new, (*new[:half], *old[half:]), (*([0] * half), *old[half:]), old)[
                number % 5
            ]

        return Words(ram=change(words.ram), disk=change(words.disk), register=number)

    def _check_snapshots(self) -> None:
        """Those that must be there are, as they were published, and no others."""
        found = looking.snapshots(self.stage.paths)
        wanted = self.world.snapshots()
        assert set(found) == set(wanted)
        for taken_id in [one for one in self._prints if one not in wanted]:
            del self._prints[taken_id]
        for taken_id in [one for one in wanted if one not in self._prints]:
            self._prints[taken_id] = found[taken_id]
            self.check_published(wanted[taken_id])
        for taken_id, prints in found.items():
            assert prints == self._prints[taken_id], f"snapshot {taken_id} is not what it was when it was published"
        inodes = [one.inode for prints in found.values() for one in prints.values()]
        assert len(set(inodes)) == len(inodes), "two snapshots share an inode"
        names = {name: taken.id for name, taken in self.world.names.items()}
        assert {name: info.id for info in self.stage.host.snapshots() for name in info.names} == names

    def taken(self, taken_id: str, owner: Expected) -> Taken:
        """A snapshot that a verb has just made of ``owner``."""
        assert taken_id not in self._prints, "it is an old one"
        return Taken(
            id=taken_id,
            owner_id=owner.id,
            owner_name=owner.name,
            hypervisor=owner.hypervisor,
            words=owner.words,
        )
