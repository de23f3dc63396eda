"""What befalls a sequence besides its verbs: VMMs that end, captures that fail, guests that cannot be let run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import strategies as st

from ramet.errors import LaunchError, RametError, RejectedError
from ramet.guests.wire import GuestRefusedError
from ramet.model import Hypervisor, State
from tests.model.choosing import chosen, needs
from tests.model.expected import Expected
from tests.model.played import Played
from tests.model.verbs import LIVE, WHO, Verbs, some_instance, some_live


class Losses(Verbs):
    """Verbs, and VMMs that end."""

    @some_live
    @chosen(who=LIVE, in_order=st.booleans())
    def lose_vmm(self, who: str, in_order: bool) -> None:
        """By a kill from outside, or because the guest powers off."""
        expected = self.world.instances[who]
        in_order = in_order and expected.state is State.RUNNING
        self.do(lambda: self.stage.power_off(who) if in_order else self.stage.kill(who))
        expected.lose_vmm(in_order=in_order)


class Sequences(Played, Losses):
    """Verbs and faults."""

    @some_live
    @needs(lambda self: self.free_names())
    @chosen(who=LIVE, verb=st.sampled_from(["standby", "fork", "snapshot"]))
    def fail_to_capture(self, who: str, verb: str) -> None:
        """The VMM refuses when it has done its work: what it wrote is lost, and which pages were dirty perhaps too."""
        expected = self.world.instances[who]
        host = self.stage.host
        self.room.machine(Path(host.get(who).run_dir)).loses_next_capture = True
        verbs: dict[str, Callable[[], object]] = {
            "standby": lambda: host.standby(who),
            "fork": lambda: host.fork(who, self.free_names()[0]),
            "snapshot": lambda: host.snapshot_create(who, "lost"),
        }

        def fail() -> None:
            with pytest.raises(RejectedError):
                verbs[verb]()

        self.do(fail, on=expected)
        expected.sync()
        expected.fail()

    @some_instance
    @chosen(who=WHO, count=st.integers(0, 2), back=st.none() | st.integers(0, 2))
    def fail_to_begin(self, who: str, count: int, back: int | None) -> None:
        """A guest does not take its identity, of a fork, after a rollback, a wake, or a boot: it must not be let run."""
        expected = self.world.instances[who]
        if count and self.free_names() and expected.state is not State.FAILED:
            self._fail_to_start_forks(who, count)
        elif back is not None:
            self._fail_to_roll_back(who, back)
        elif not expected.live:
            self._fail_to_wake(who)

    def _fail_to_start_forks(self, who: str, count: int) -> None:
        """The first of them does not take its identity: none is left."""
        source = self.world.instances[who]
        names = self.free_names()[:count]
        self._fail(
            lambda: self.stage.host.fork(who, names, start=True),
            LaunchError if source.state is State.STOPPED else GuestRefusedError,
            on=source if source.live or source.pending else None,
        )
        if source.live:
            source.sync()
            base = self.stage.host.get(who).diff_base
            if source.hypervisor is Hypervisor.FIRECRACKER:
                assert base is not None
                source.base = self.taken(base, source)

    def _fail_to_wake(self, who: str) -> None:
        """Or to boot: it is what it was."""
        expected = self.world.instances[who]
        asleep = expected.state is State.STANDBY
        verb = self.stage.host.restore if asleep else self.stage.host.start
        self._fail(lambda: verb(who), GuestRefusedError if asleep else LaunchError, on=expected)
        expected.fail()

    def _fail_to_roll_back(self, who: str, nth: int) -> None:
        """It is what it was, unless it was live: that is given up first."""
        expected = self.world.instances[who]
        there = self.world.snapshots(after_a_verb_on=expected)
        own = [taken for taken in self.by_age() if taken.owner_id == expected.id and taken.id in there]
        if not own:
            return
        taken = own[nth % len(own)]
        self._fail(
            lambda: self.stage.host.restore(who, snapshot=taken.id, discard_memory=True, discard_disk=True),
            GuestRefusedError,
            on=expected,
        )
        if expected.live:
            expected.give_up()
            self.world.gave_up_for(taken)
        expected.fail()

    def _fail(self, verb: Callable[[], object], error: type[RametError], *, on: Expected | None = None) -> None:
        self.room.refuse_next_identity()

        def fail() -> None:
            with pytest.raises(error):
                verb()

        self.do(fail, on=on)
