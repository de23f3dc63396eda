"""Parked forks with no VM behind them: their records, processes that stand for their VMMs, and what their guests answer."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from ramet import process
from ramet.instances import birth
from ramet.model import Ancestor, InstanceRecord, State, VmmProcess
from ramet.store import atomic, names
from tests.unit.instances.place import INSTANCE, Place

GONE = VmmProcess(pid=1, start_time_ticks=1, boot_id="another boot")


def park(place: Place, number: int, vmm: VmmProcess | None, **changes: object) -> InstanceRecord:
    """A parked fork of ``web``, by its record alone."""
    one = f"{number:x}" * 12
    parent = Ancestor(instance_id=INSTANCE, name="web", snapshot_id=place.snapshot_id)
    made = msgspec.structs.replace(
        place.record,
        id=one,
        name=one,
        state=State.PARKED,
        pool=INSTANCE,
        lineage=(parent,),
        created_at_unix_s=float(number),
        mapped_snapshot=place.snapshot_id,
        vmm=vmm,
    )
    made = msgspec.structs.replace(made, **changes)
    paths = place.store.paths.instance(one)
    paths.dir.mkdir(mode=0o700)
    birth.make_directories(paths.dir)
    atomic.write_json(paths.record, made)
    names.claim(place.store.paths.instance_names, made.name, one, what="instance")
    return made


def start_vmm(made: list[subprocess.Popen[bytes]]) -> VmmProcess:
    """A process that is there, and stands for a VMM."""
    child = subprocess.Popen(["sleep", "60"])
    made.append(child)
    ticks = process.start_time_ticks(child.pid)
    assert ticks is not None
    return VmmProcess(pid=child.pid, start_time_ticks=ticks, boot_id=process.boot_id())


class Guests:
    """Every monitor and agent there is. Each can be told, by the id of its instance, what to do when it is asked."""

    def __init__(self) -> None:
        self.on_connect: dict[str, Callable[[], object]] = {}
        self.on_identity: dict[str, Callable[[], object]] = {}
        self.on_thaw: dict[str, Callable[[], object]] = {}
        self.running: set[str] = set()
        """Whose vCPUs run."""
        self.thawed: list[str] = []
        self.generations: list[int] = []
        """Of the identities that were given, in turn."""

    @contextmanager
    def connect(self, _driver: object, run_dir: Path) -> Iterator[Monitor]:
        """Stands for a driver's ``connect``."""
        one = run_dir.parent.name
        self.on_connect.get(one, _nothing)()
        yield Monitor(self, one)

    @contextmanager
    def identified(self, run_dir: Path, _record: InstanceRecord, *, generation: int) -> Iterator[Agent]:
        """Stands for ``guest.identified``."""
        one = run_dir.parent.name
        self.generations.append(generation)
        self.on_identity.get(one, _nothing)()
        yield Agent(self, one)


class Monitor:
    """What a claim asks of a monitor."""

    def __init__(self, guests: Guests, instance_id: str) -> None:
        self._guests, self._id = guests, instance_id

    def resume_vcpus(self) -> None:
        self._guests.running.add(self._id)

    def stop_vcpus(self) -> None:
        self._guests.running.discard(self._id)

    def vcpus_running(self) -> bool:
        return self._id in self._guests.running


class Agent:
    """What a claim asks of an agent."""

    def __init__(self, guests: Guests, instance_id: str) -> None:
        self._guests, self._id = guests, instance_id

    def thaw(self, *, timeout_s: float) -> None:
        assert timeout_s > 0
        self._guests.on_thaw.get(self._id, _nothing)()
        self._guests.thawed.append(self._id)


def failing(error: BaseException) -> Callable[..., object]:
    """What raises an error, whatever it is told."""

    def fail(*_arguments: object, **_choices: object) -> None:
        raise error

    return fail


def _nothing() -> None:
    """As it should."""
