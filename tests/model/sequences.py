"""Sequences of verbs, chosen at random, through the real ``Host``; after each, all that is there is held against the model."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ramet.errors import (
    ConfigError,
    ConflictError,
    InUseError,
    NotFoundError,
    RametError,
    RejectedError,
    StateError,
    UnsupportedError,
)
from ramet.model import Ancestor, Failure, Hypervisor, InstanceInfo, State
from tests.model import looking
from tests.model.expected import Expected, Taken, World
from tests.model.machine import DISK_BLOCKS, RAM_PAGES, words_on_disk
from tests.model.stage import Stage

T = TypeVar("T")
INSTANCES = ("a", "b", "c", "d", "e", "f")
SNAPSHOTS = ("s1", "s2", "s3")


def _of(choose: Callable[[Any], list[str]]) -> st.SearchStrategy[str]:
    """One of what the sequence so far has led to."""
    return st.runner().flatmap(lambda sequence: st.sampled_from(choose(sequence)))


WHO = _of(lambda sequence: sorted(sequence.world.instances))
FREE = _of(lambda sequence: sequence.free_names())
TAKEN = _of(lambda sequence: sequence.ways_to_say_snapshot())
NAMED = _of(lambda sequence: sorted(sequence.world.names))
HYPERVISOR = st.sampled_from(Hypervisor)
PLACE = st.one_of(
    st.tuples(st.just("ram"), st.integers(0, len(RAM_PAGES) - 1)),
    st.tuples(st.just("disk"), st.integers(0, len(DISK_BLOCKS) - 1)),
    st.tuples(st.just("register"), st.just(0)),
)
some_instance = precondition(lambda self: self.world.instances)
some_snapshot = precondition(lambda self: self.world.snapshots())


class Sequences(RuleBasedStateMachine):
    """One sequence, in a store of its own."""

    place: tuple[Path, Path]
    """The directory of the stores, and the program that plays the VMMs."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self._prints: dict[str, dict[str, looking.Print]] = {}
        self._stage: Stage | None = None
        self._written = 0
        self._in_order = True

    # -- the frame -----------------------------------------------------------------------------------------------

    @initialize(mapped_read_only=st.booleans())
    def open(self, mapped_read_only: bool) -> None:
        """Whether QEMU is played as one that opens the memory read-only."""
        self._stage = Stage(*self.place, mapped_read_only=mapped_read_only)

    @property
    def stage(self) -> Stage:
        assert self._stage is not None
        return self._stage

    def teardown(self) -> None:
        if self._stage is None:
            return
        try:
            if self._in_order:
                self._remove_all()
        finally:
            self._stage.close()

    def _remove_all(self) -> None:
        host = self.stage.host
        for name in sorted(self.world.instances):
            host.remove(name, force=True)
            del self.world.instances[name]
            assert set(looking.snapshots(self.stage.paths)) == set(self.world.snapshots())
        for name in sorted(self.world.names):
            host.snapshot_remove(name)
        assert looking.left_overs(self.stage.paths) == []
        assert self.stage.room.alive() == []

    def free_names(self) -> list[str]:
        return [name for name in INSTANCES if name not in self.world.instances]

    def ways_to_say_snapshot(self) -> list[str]:
        """Names, and the place in order of age of one that has none."""
        nameless = [taken for taken in self.world.snapshots().values() if taken not in self.world.names.values()]
        return [*sorted(self.world.names), *(f"#{number}" for number in range(len(nameless)))]

    def _snapshot(self, said: str) -> tuple[Taken, str]:
        """The snapshot that is meant, and what a user calls it."""
        if said in self.world.names:
            return self.world.names[said], said
        existing = set(self.world.snapshots().values()) - set(self.world.names.values())
        by_age = [taken for taken_id in self._prints for taken in existing if taken.id == taken_id]
        taken = by_age[int(said.removeprefix("#"))]
        return taken, taken.id

    def _do(
        self, call: Callable[[], T], *, on: Expected | None = None, refused: type[RametError] | None = None
    ) -> T | None:
        """Do a verb that locks ``on``; if it is to be ``refused``, it changes nothing, but that ``on`` is seen as it is."""
        self._in_order = False
        is_mended = on is not None and on.record_is_behind
        before = looking.records(self.stage.paths)
        if on is not None:
            on.settle()
        if refused is None:
            return call()
        with pytest.raises(refused) as caught:
            call()
        assert caught.type is refused
        after = looking.records(self.stage.paths)
        if on is not None and is_mended:
            before[on.id] = after[on.id]
        assert after == before, f"{refused.__name__}, and yet something has changed"
        return None

    # -- what is there, against the model --------------------------------------------------------------------------

    @invariant()
    def all_is_as_expected(self) -> None:
        if self._stage is None:
            return
        self._in_order = False
        infos = {info.name: info for info in self.stage.host.list()}
        assert set(infos) == set(self.world.instances)
        for name, info in infos.items():
            self._check_surface(info, self.world.instances[name])
            self._check_words(info, self.world.instances[name])
        self._check_snapshots()
        self._in_order = True

    def _check_surface(self, info: InstanceInfo, expected: Expected) -> None:
        assert (info.id, info.state, info.hypervisor) == (expected.id, expected.state, expected.hypervisor)
        assert info.failure is (Failure.VMM_LOST if expected.state is State.FAILED else None)
        assert info.lineage == expected.lineage
        assert (info.snapshot.id if info.snapshot else None) == (expected.snapshot.id if expected.snapshot else None)
        assert info.mapped_snapshot == (expected.mapped.id if expected.mapped else None)
        assert info.diff_base == (expected.base.id if expected.base else None)
        assert (info.pid is not None) == expected.live
        assert (info.live_disk is None) == (expected.state is State.STANDBY)
        if info.mapped_memory is not None and info.mapped_memory.writable:
            mapped = Path(info.mapped_memory.path).parent.name
            needed_by = [one for one in self.world.instances.values() if any(t.id == mapped for t in one.refers_to())]
            assert needed_by in ([], [expected]), "a VMM could write what others need"

    def _check_words(self, info: InstanceInfo, expected: Expected) -> None:
        if expected.state is State.RUNNING:
            assert self.stage.read(info.name) == expected.words
        if expected.live:
            machine = self.stage.room.machine(Path(info.run_dir))
            assert machine.words() == expected.words
            assert machine.is_frozen == (expected.state is State.PAUSED)
            assert machine.vcpus_run == (expected.state is State.RUNNING)
            assert machine.identity() == (expected.generation, expected.name)
        if info.live_disk is not None:
            fd = os.open(info.live_disk, os.O_RDONLY)
            try:
                assert words_on_disk(fd) == expected.synced
            finally:
                os.close(fd)

    def _check_snapshots(self) -> None:
        """Those that must be there are, as they were published, and no others."""
        found = looking.snapshots(self.stage.paths)
        wanted = self.world.snapshots()
        assert set(found) == set(wanted)
        self._prints = {taken_id: self._prints.get(taken_id) or found[taken_id] for taken_id in [*self._prints, *wanted]
                        if taken_id in wanted}  # fmt: skip
        for taken_id, prints in found.items():
            assert prints == self._prints[taken_id], f"snapshot {taken_id} is not what it was when it was published"
        inodes = [one.inode for prints in found.values() for one in prints.values()]
        assert len(set(inodes)) == len(inodes), "two snapshots share an inode"
        names = {name: taken.id for name, taken in self.world.names.items()}
        assert {name: info.id for info in self.stage.host.snapshots() for name in info.names} == names

    def _taken(self, taken_id: str, owner: Expected) -> Taken:
        """A snapshot that a verb has just made of ``owner``."""
        assert taken_id not in self._prints, "it is an old one"
        return Taken(
            id=taken_id,
            owner_id=owner.id,
            owner_name=owner.name,
            hypervisor=owner.hypervisor,
            words=owner.words,
        )

    # -- verbs: one instance ---------------------------------------------------------------------------------------

    @precondition(lambda self: self.free_names())
    @rule(name=FREE, hypervisor=HYPERVISOR)
    def create(self, name: str, hypervisor: Hypervisor) -> None:
        made = self._do(lambda: self.stage.create(name, hypervisor))
        assert made is not None
        self.world.instances[name] = expected = Expected(id=made, name=name, hypervisor=hypervisor)
        expected.boot()

    @some_instance
    @rule(who=WHO)
    def create_again(self, who: str) -> None:
        self._do(lambda: self.stage.create(who, Hypervisor.QEMU), refused=ConflictError)

    @some_instance
    @rule(who=WHO, place=PLACE)
    def write(self, who: str, place: tuple[str, int]) -> None:
        expected = self.world.instances[who]
        self._written += 1
        value = self._written
        runs = expected.state is State.RUNNING
        self._do(
            lambda: self.stage.write(who, *place, value),
            on=expected if expected.live else None,
            refused=None if runs else StateError,
        )
        if runs:
            expected.write(*place, value)

    @some_instance
    @rule(who=WHO)
    def standby(self, who: str) -> None:
        expected = self.world.instances[who]
        possible = expected.live or expected.state is State.STANDBY
        info = self._do(lambda: self.stage.host.standby(who), on=expected, refused=None if possible else StateError)
        if expected.live and info is not None:
            assert info.snapshot is not None
            expected.sleep(self._taken(info.snapshot.id, expected))

    @some_instance
    @rule(who=WHO, discard_disk=st.booleans())
    def restore(self, who: str, discard_disk: bool) -> None:
        expected = self.world.instances[who]
        wakes_from = expected.snapshot if expected.state is State.STANDBY else None
        if expected.state is State.FAILED and discard_disk:
            wakes_from = expected.snapshot
        possible = wakes_from is not None or expected.state is State.RUNNING
        self._do(
            lambda: self.stage.host.restore(who, discard_disk=discard_disk),
            on=expected,
            refused=None if possible else StateError,
        )
        if wakes_from is not None:
            expected.wake(wakes_from)

    @some_instance
    @some_snapshot
    @rule(who=WHO, snapshot=TAKEN, discard=st.booleans())
    def roll_back(self, who: str, snapshot: str, discard: bool) -> None:
        expected = self.world.instances[who]
        taken, called = self._snapshot(snapshot)
        refused: type[RametError] | None = None
        if taken.id not in self.world.snapshots(after_a_verb_on=expected):
            refused = NotFoundError
        elif expected.live and not discard:
            refused = StateError
        elif taken.owner_id != expected.id:
            refused = ConfigError
        self._do(
            lambda: self.stage.host.restore(who, snapshot=called, discard_memory=discard, discard_disk=discard),
            on=expected,
            refused=refused,
        )
        if refused is None:
            expected.wake(taken)

    @some_instance
    @rule(who=WHO)
    def pause(self, who: str) -> None:
        expected = self.world.instances[who]
        self._do(lambda: self.stage.host.pause(who), on=expected, refused=None if expected.live else StateError)
        if expected.live:
            expected.sync()
            expected.state = State.PAUSED

    @some_instance
    @rule(who=WHO)
    def resume(self, who: str) -> None:
        expected = self.world.instances[who]
        self._do(lambda: self.stage.host.resume(who), on=expected, refused=None if expected.live else StateError)
        if expected.live:
            expected.state = State.RUNNING

    @some_instance
    @rule(who=WHO, discard_memory=st.booleans(), force=st.booleans())
    def stop(self, who: str, discard_memory: bool, force: bool) -> None:
        expected = self.world.instances[who]
        sleeps = expected.state is State.STANDBY
        possible = discard_memory if sleeps else expected.state is not State.FAILED
        self._do(
            lambda: self.stage.host.stop(who, discard_memory=discard_memory, force=force),
            on=expected,
            refused=None if possible else StateError,
        )
        if possible and expected.state is not State.STOPPED:
            if not sleeps:
                expected.sync()
            expected.stop()

    @some_instance
    @rule(who=WHO)
    def start(self, who: str) -> None:
        expected = self.world.instances[who]
        possible = expected.state not in (State.PAUSED, State.STANDBY)
        self._do(lambda: self.stage.host.start(who), on=expected, refused=None if possible else StateError)
        if possible and not expected.live:
            expected.boot()

    @some_instance
    @rule(who=WHO, force=st.booleans())
    def remove(self, who: str, force: bool) -> None:
        expected = self.world.instances[who]
        possible = force or not expected.live
        self._do(
            lambda: self.stage.host.remove(who, force=force), on=expected, refused=None if possible else StateError
        )
        if possible:
            del self.world.instances[who]

    @some_instance
    @rule(who=WHO, in_order=st.booleans())
    def lose_vmm(self, who: str, in_order: bool) -> None:
        """By a kill from outside, or because the guest powers off."""
        expected = self.world.instances[who]
        if not expected.live or (in_order and expected.state is State.PAUSED):
            return
        self._do(lambda: self.stage.power_off(who) if in_order else self.stage.kill(who))
        expected.lose_vmm(in_order=in_order)

    @some_instance
    @rule(who=WHO, verb=st.sampled_from(["standby", "fork", "snapshot"]))
    def fail_to_capture(self, who: str, verb: str) -> None:
        """The VMM refuses when it has done its work: what it wrote is lost, and which pages were dirty perhaps too."""
        expected = self.world.instances[who]
        free = self.free_names()
        if not expected.live or not free:
            return
        host = self.stage.host
        self.stage.room.machine(self.stage.run_dir(who)).loses_next_capture = True
        self._in_order = False
        verbs: dict[str, Callable[[], object]] = {
            "standby": lambda: host.standby(who),
            "fork": lambda: host.fork(who, free[0]),
            "snapshot": lambda: host.snapshot_create(who, "lost"),
        }
        with pytest.raises(RejectedError):
            verbs[verb]()
        expected.sync()
        expected.record_is_behind = True

    # -- verbs: forks and snapshots ----------------------------------------------------------------------------------

    @some_instance
    @precondition(lambda self: self.free_names())
    @rule(who=WHO, count=st.integers(1, 3), start=st.booleans(), hypervisor=st.none() | HYPERVISOR)
    def fork(self, who: str, count: int, start: bool, hypervisor: Hypervisor | None) -> None:
        source = self.world.instances[who]
        names = self.free_names()[:count]
        refused: type[RametError] | None = None
        if source.state is State.FAILED:
            refused = StateError
        elif source.state is not State.STOPPED and hypervisor not in (None, source.hypervisor):
            refused = UnsupportedError
        report = self._do(
            lambda: self.stage.host.fork(who, names, start=start, hypervisor=hypervisor),
            on=source if source.live else None,
            refused=refused,
        )
        if report is None:
            return
        origin = source.snapshot.id if source.snapshot and source.state is State.STANDBY else None
        words = source.snapshot.words if source.snapshot and source.state is State.STANDBY else source.words
        if source.live:
            source.sync()
            origin = report.instances[0].lineage[-1].snapshot_id
            assert origin is not None
            assert origin not in self._prints, "a guest that runs was not captured anew"
            if source.hypervisor is Hypervisor.FIRECRACKER:
                source.base = self._taken(origin, source)
        for info in report.instances:
            fork = self._forked(info, source, origin)
            fork.hypervisor = hypervisor or source.hypervisor
            fork.words, fork.synced = words, source.synced
            self._begin(fork, info, asleep=source.state is not State.STOPPED, start=start)

    @some_snapshot
    @precondition(lambda self: self.free_names())
    @rule(snapshot=TAKEN, count=st.integers(1, 3), start=st.booleans())
    def fork_snapshot(self, snapshot: str, count: int, start: bool) -> None:
        taken, called = self._snapshot(snapshot)
        owner = self.world.owner(taken)
        names = self.free_names()[:count]
        report = self._do(lambda: self.stage.host.fork(f"snapshot:{called}", names, start=start))
        assert report is not None
        for info in report.instances:
            fork = self._forked(info, owner, taken.id)
            fork.hypervisor = taken.hypervisor
            fork.words = taken.words
            self._begin(fork, info, asleep=True, start=start)

    def _forked(self, info: InstanceInfo, source: Expected, origin: str | None) -> Expected:
        ancestor = Ancestor(instance_id=source.id, name=source.name, snapshot_id=origin)
        fork = Expected(
            id=info.id,
            name=info.name,
            hypervisor=source.hypervisor,
            lineage=(*source.lineage, ancestor),
            generation=source.generation,
        )
        self.world.instances[fork.name] = fork
        return fork

    def _begin(self, fork: Expected, info: InstanceInfo, *, asleep: bool, start: bool) -> None:
        """It sleeps on a snapshot of its own, or has the disk alone; or it was started at once."""
        if not asleep:
            if start:
                fork.boot()
            return
        assert info.snapshot is not None
        taken = self._taken(info.snapshot.id, fork)
        if start:
            fork.wake(taken)
        else:
            fork.sleep(taken)

    @some_instance
    @rule(who=WHO, name=st.sampled_from(SNAPSHOTS))
    def snapshot_create(self, who: str, name: str) -> None:
        expected = self.world.instances[who]
        possible = expected.live or expected.state is State.STANDBY
        if name in self.world.names:
            self._do(lambda: self.stage.host.snapshot_create(who, name), refused=ConflictError)
            return
        info = self._do(
            lambda: self.stage.host.snapshot_create(who, name), on=expected, refused=None if possible else StateError
        )
        if info is None:
            return
        if expected.live:
            expected.sync()
            taken = self._taken(info.id, expected)
            if expected.hypervisor is Hypervisor.FIRECRACKER:
                expected.base = taken
        else:
            assert expected.snapshot is not None
            taken = expected.snapshot
        assert info.id == taken.id
        self.world.names[name] = taken

    @precondition(lambda self: self.world.names)
    @rule(name=NAMED)
    def snapshot_remove(self, name: str) -> None:
        self._do(lambda: self.stage.host.snapshot_remove(name))
        del self.world.names[name]

    @some_snapshot
    @rule(snapshot=TAKEN)
    def snapshot_remove_by_id(self, snapshot: str) -> None:
        """Each is there because something needs it."""
        taken, _ = self._snapshot(snapshot)
        self._do(lambda: self.stage.host.snapshot_remove(taken.id), refused=InUseError)
