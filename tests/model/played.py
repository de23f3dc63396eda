"""Sequences over VMs that are played: all that a guest sees and a file holds is looked at, after every step."""

from __future__ import annotations

from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import initialize

from ramet.model import State
from tests.model import looking
from tests.model.expected import Expected, Taken
from tests.model.frame import Frame
from tests.model.machine import words_on_disk
from tests.model.played_drivers import PlayedVmms
from tests.model.played_stage import PlayedStage


class Played(Frame):
    """What is particular to them."""

    place: tuple[Path, Path]
    """The directory of the stores, and the program that plays the VMMs."""

    @initialize(mapped_read_only=st.booleans())
    def open(self, mapped_read_only: bool) -> None:
        """An empty store; whether QEMU is played as one that opens the memory read-only."""
        self.acting = PlayedStage(*self.place, mapped_read_only=mapped_read_only)

    @property
    def room(self) -> PlayedVmms:
        """Of VMs that are played."""
        assert isinstance(self.acting, PlayedStage)
        return self.acting.room

    def check_words(self, expected: Expected) -> None:
        paths = self.stage.paths.instance(expected.id)
        if expected.state is State.RUNNING and self.asked in (None, expected.name):
            after = self.next_words(expected.words)
            assert self.stage.write(expected.name, after) == expected.words
            expected.words = after
            expected.settle()  # a command in a guest tidies up too
        if expected.live:
            machine = self.room.machine(paths.run)
            assert machine.words() == expected.words
            assert machine.is_frozen == (expected.state is State.PAUSED)
            assert machine.vcpus_run == (expected.state is State.RUNNING)
            assert machine.identity() == (expected.generation, expected.name)
        if expected.state is not State.STANDBY:
            with paths.disk.open("rb") as disk:
                assert words_on_disk(disk.fileno()) == expected.synced

    def check_published(self, taken: Taken) -> None:
        """The files of a new snapshot hold what they must."""
        assert looking.words_in(self.stage.paths.snapshot(taken.id)) == taken.words
