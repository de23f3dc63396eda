"""The verbs of a random sequence: what each does to the store through the real ``Host``, and to the model."""

from __future__ import annotations

from hypothesis import strategies as st

from ramet.errors import (
    ConfigError,
    ConflictError,
    InUseError,
    NotFoundError,
    RametError,
    StateError,
    UnsupportedError,
)
from ramet.linux import leases
from ramet.model import Ancestor, Hypervisor, InstanceInfo, MemoryPolicy, State
from tests.model.choosing import chosen, needs, one_of
from tests.model.expected import Expected, Taken
from tests.model.frame import Frame

SNAPSHOTS = ("s1", "s2", "s3", "s4")
CREATED_MAX = 2
"""The others are forks."""


LIVE = one_of(lambda sequence: sequence.live())
WHO = one_of(lambda sequence: sorted(sequence.world.instances))
FREE = one_of(lambda sequence: sequence.free_names())
TAKEN = one_of(lambda sequence: sequence.ways_to_say_snapshot())
NAMED = one_of(lambda sequence: sorted(sequence.world.names))
POLICY = st.sampled_from(MemoryPolicy)
HYPERVISOR = one_of(lambda sequence: sequence.hypervisors)
some_live = needs(lambda self: self.live())
some_instance = needs(lambda self: self.world.instances)
some_snapshot = needs(lambda self: self.world.snapshots())


class Verbs(Frame):
    """What a user does."""

    # -- verbs: one instance ---------------------------------------------------------------------------------------

    @needs(lambda self: len(self.world.instances) < CREATED_MAX)
    @chosen(weight=6, name=FREE, hypervisor=HYPERVISOR)
    def create(self, name: str, hypervisor: Hypervisor) -> None:
        made = self.do(lambda: self.stage.create(name, hypervisor))
        assert made is not None
        self.world.instances[name] = expected = Expected(id=made, name=name, hypervisor=hypervisor)
        expected.boot()

    @some_instance
    @chosen(weight=1, who=WHO)
    def write(self, who: str) -> None:
        """In one that does not run, refused; one that runs writes after each verb."""
        expected = self.world.instances[who]
        runs = expected.state is State.RUNNING
        self.do(
            lambda: self.stage.write(who, expected.words),
            on=expected if expected.live else None,
            refused=None if runs else StateError,
        )

    @some_instance
    @chosen(weight=5, who=WHO)
    def standby(self, who: str) -> None:
        expected = self.world.instances[who]
        possible = expected.live or expected.state is State.STANDBY
        info = self.do(lambda: self.stage.host.standby(who), on=expected, refused=None if possible else StateError)
        if expected.live and info is not None:
            assert info.snapshot is not None
            expected.sleep(self.taken(info.snapshot.id, expected))

    @some_instance
    @chosen(weight=4, who=WHO, discard_disk=st.booleans())
    def restore(self, who: str, discard_disk: bool) -> None:
        expected = self.world.instances[who]
        wakes_from = expected.snapshot if expected.state is State.STANDBY else None
        if expected.state is State.FAILED and discard_disk:
            wakes_from = expected.snapshot
        possible = wakes_from is not None or expected.state is State.RUNNING
        self.do(
            lambda: self.stage.host.restore(who, discard_disk=discard_disk),
            on=expected,
            refused=None if possible else StateError,
        )
        if wakes_from is not None:
            expected.wake(wakes_from)

    @needs(lambda self: self.own_snapshots())
    @chosen(
        weight=8, which=one_of(lambda sequence: sequence.own_snapshots()), discard=st.sampled_from([True, True, False])
    )
    def roll_back(self, which: tuple[str, str], discard: bool) -> None:
        """To a snapshot of its own."""
        self._roll_back(*which, discard=discard)

    @some_instance
    @some_snapshot
    @chosen(weight=1, who=WHO, snapshot=TAKEN)
    def roll_back_to_any(self, who: str, snapshot: str) -> None:
        self._roll_back(who, snapshot, discard=True)

    def _roll_back(self, who: str, snapshot: str, *, discard: bool) -> None:
        expected = self.world.instances[who]
        taken, called = self.snapshot(snapshot)
        refused: type[RametError] | None = None
        if taken.id not in self.world.snapshots(after_a_verb_on=expected):
            refused = NotFoundError
        elif expected.live and not discard:
            refused = StateError
        elif not expected.may_wake_from(taken):
            refused = ConfigError
        self.do(
            lambda: self.stage.host.restore(who, snapshot=called, discard_memory=discard, discard_disk=discard),
            on=expected,
            refused=refused,
        )
        if refused is None:
            self.world.no_longer_left(taken)
            expected.wake(taken)

    @some_instance
    @chosen(weight=3, who=WHO)
    def pause(self, who: str) -> None:
        expected = self.world.instances[who]
        self.do(lambda: self.stage.host.pause(who), on=expected, refused=None if expected.live else StateError)
        if expected.live:
            expected.sync()
            expected.state = State.PAUSED

    @some_instance
    @chosen(weight=3, who=WHO)
    def resume(self, who: str) -> None:
        expected = self.world.instances[who]
        self.do(lambda: self.stage.host.resume(who), on=expected, refused=None if expected.live else StateError)
        if expected.live:
            expected.state = State.RUNNING

    @some_instance
    @chosen(weight=2, who=WHO, discard_memory=st.booleans(), force=st.booleans())
    def stop(self, who: str, discard_memory: bool, force: bool) -> None:
        expected = self.world.instances[who]
        sleeps = expected.state is State.STANDBY
        possible = discard_memory if sleeps else expected.state is not State.FAILED
        self.do(
            lambda: self.stage.host.stop(who, discard_memory=discard_memory, force=force),
            on=expected,
            refused=None if possible else StateError,
        )
        if possible and expected.state is not State.STOPPED:
            if not sleeps:
                expected.sync()
            expected.stop()

    @some_instance
    @chosen(weight=3, who=WHO)
    def start(self, who: str) -> None:
        expected = self.world.instances[who]
        possible = expected.state not in (State.PAUSED, State.STANDBY)
        self.do(lambda: self.stage.host.start(who), on=expected, refused=None if possible else StateError)
        if possible and not expected.live:
            expected.boot()

    @some_instance
    @chosen(weight=2, who=WHO, force=st.booleans())
    def remove(self, who: str, force: bool) -> None:
        expected = self.world.instances[who]
        possible = force or not expected.live
        self.do(lambda: self.stage.host.remove(who, force=force), on=expected, refused=None if possible else StateError)
        if possible:
            del self.world.instances[who]

    # -- verbs: forks and snapshots ----------------------------------------------------------------------------------

    @some_instance
    @needs(lambda self: self.free_names())
    @chosen(
        weight=5,
        who=WHO,
        count=st.integers(1, 3),
        start=st.booleans(),
        hypervisor=st.none() | HYPERVISOR,
        policy=POLICY,
    )
    def fork(self, who: str, count: int, start: bool, hypervisor: Hypervisor | None, policy: MemoryPolicy) -> None:
        source = self.world.instances[who]
        names = self.free_names()[:count]
        refused: type[RametError] | None = None
        if source.state is State.FAILED or (source.state is State.STOPPED and policy is MemoryPolicy.SHARE):
            refused = StateError
        elif source.state is not State.STOPPED and hypervisor not in (None, source.hypervisor):
            refused = UnsupportedError
        report = self.do(
            lambda: self.stage.host.fork(who, names, start=start, hypervisor=hypervisor, memory_policy=policy),
            on=source if source.live or source.pending else None,
            refused=refused,
        )
        if report is None:
            return
        origin = source.snapshot.id if source.snapshot and source.state is State.STANDBY else None
        words = source.snapshot.words if source.snapshot and source.state is State.STANDBY else source.words
        shared = source.snapshot if policy is MemoryPolicy.SHARE else None
        if source.live:
            source.sync()
            origin = report.instances[0].lineage[-1].snapshot_id
            assert origin is not None
            assert origin not in self._prints, "a guest that runs was not captured anew"
            taken = self.taken(origin, source)
            if source.hypervisor is Hypervisor.FIRECRACKER:
                source.base = taken
            shared = taken if policy is MemoryPolicy.SHARE else None
        for info in report.instances:
            fork = self._forked(info, source, origin)
            fork.hypervisor = hypervisor or source.hypervisor
            fork.words, fork.synced = words, source.synced
            self._begin(fork, info, asleep=source.state is not State.STOPPED, start=start, shared=shared)

    @some_snapshot
    @needs(lambda self: self.free_names())
    @chosen(weight=4, snapshot=TAKEN, count=st.integers(1, 3), start=st.booleans(), policy=POLICY)
    def fork_snapshot(self, snapshot: str, count: int, start: bool, policy: MemoryPolicy) -> None:
        taken, called = self.snapshot(snapshot)
        owner = self.world.owner(taken)
        names = self.free_names()[:count]
        shared = taken if policy is MemoryPolicy.SHARE else None
        report = self.do(
            lambda: self.stage.host.fork(f"snapshot:{called}", names, start=start, memory_policy=policy),
            refused=ConflictError if shared and not self._nobody_writes(taken) else None,
        )
        if report is None:
            return
        for info in report.instances:
            fork = self._forked(info, owner, taken.id)
            fork.hypervisor = taken.hypervisor
            fork.words = taken.words
            self._begin(fork, info, asleep=True, start=start, shared=shared)

    def _nobody_writes(self, taken: Taken) -> bool:
        """An older QEMU may run from the snapshot of its own instance."""
        with self.stage.paths.snapshot(taken.id).memory.open("rb") as stream:
            return leases.nobody_writes(stream.fileno())

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

    def _begin(self, fork: Expected, info: InstanceInfo, *, asleep: bool, start: bool, shared: Taken | None) -> None:
        """It sleeps on a snapshot of its own, or on one that it shares, or has the disk alone; or it was started at once."""
        fork.shares = shared is not None
        if not asleep:
            if start:
                fork.boot()
            return
        assert info.snapshot is not None
        taken = shared or self.taken(info.snapshot.id, fork)
        assert info.snapshot.id == taken.id
        if start:
            fork.wake(taken)
        else:
            fork.sleep(taken)

    @some_instance
    @chosen(weight=5, who=WHO, name=st.sampled_from(SNAPSHOTS))
    def snapshot_create(self, who: str, name: str) -> None:
        expected = self.world.instances[who]
        possible = expected.live or expected.state is State.STANDBY
        if name in self.world.names:
            self.do(lambda: self.stage.host.snapshot_create(who, name), refused=ConflictError)
            return
        info = self.do(
            lambda: self.stage.host.snapshot_create(who, name), on=expected, refused=None if possible else StateError
        )
        if info is None:
            return
        if expected.live:
            expected.sync()
            taken = self.taken(info.id, expected)
            if expected.hypervisor is Hypervisor.FIRECRACKER:
                expected.base = taken
        else:
            assert expected.snapshot is not None
            taken = expected.snapshot
        assert info.id == taken.id
        self.world.names[name] = taken

    @needs(lambda self: self.world.names)
    @chosen(weight=2, name=NAMED)
    def snapshot_remove(self, name: str) -> None:
        self.do(lambda: self.stage.host.snapshot_remove(name))
        del self.world.names[name]

    @some_snapshot
    @chosen(weight=1, snapshot=TAKEN)
    def snapshot_remove_by_id(self, snapshot: str) -> None:
        """Each is there because something needs it, or because a rollback to it failed."""
        taken, _ = self.snapshot(snapshot)
        self.world.no_longer_left(taken)
        needed = taken.id in self.world.snapshots()
        self.do(lambda: self.stage.host.snapshot_remove(taken.id), refused=InUseError if needed else None)

    @some_instance
    @chosen(weight=1, who=WHO)
    def create_again(self, who: str) -> None:
        self.do(lambda: self.stage.create(who, Hypervisor.QEMU), refused=ConflictError)
