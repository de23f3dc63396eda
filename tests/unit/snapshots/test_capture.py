"""A whole capture of a stopped VMM: device state, disk and memory, in that order, from a monitor that the test plays."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from ramet.errors import HostError, RejectedError, VmmError
from ramet.model import PAGE_BYTES, Method
from ramet.paths import InstancePaths, SnapshotPaths
from ramet.snapshots import capture as module
from ramet.snapshots import memory
from ramet.snapshots.capture import Captured, capture
from ramet.snapshots.scatter import Scatter
from tests.unit.children import Mapper, own_descriptors
from tests.unit.snapshots.memory_files import ONES, Fingerprint, full_base, hole

STATE = b"device state" * 700


@dataclass
class PlayedMonitor:
    """Writes ``state`` where it is told, or refuses."""

    state: bytes = STATE
    refusal: BaseException | None = None
    asked: list[Path] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def save_device_state(self, path: Path) -> None:
        self.asked.append(path)
        path.write_bytes(self.state)
        if self.refusal is not None:
            raise self.refusal

    def stop_vcpus(self) -> None:
        raise AssertionError("a capture neither stops nor resumes: its caller does")

    resume_vcpus = quit = stop_vcpus

    def vcpus_running(self) -> bool:
        return False


@pytest.fixture
def live(live: InstancePaths) -> InstancePaths:
    full_base(live.memory)
    return live


@pytest.fixture
def child(live: InstancePaths) -> Iterator[Mapper]:
    with Mapper(live.memory) as mapper:
        mapper.write(7 * PAGE_BYTES, ONES)
        yield mapper


def captured(monitor: PlayedMonitor, child: Mapper, live: InstancePaths, into: SnapshotPaths) -> Captured:
    return capture(
        monitor, child.vmm, live=live, mapped_file=live.memory, into=into, base_is_empty=False, scatter=Scatter()
    )


def test_everything_is_captured_and_described(child: Mapper, live: InstancePaths, into: SnapshotPaths) -> None:
    before = [Fingerprint.of(path) for path in (live.disk, live.memory)]
    made = captured(PlayedMonitor(), child, live, into)
    assert into.vmstate.read_bytes() == STATE
    assert into.disk.read_bytes() == live.disk.read_bytes()
    assert into.memory.read_bytes() == child.read()
    assert made.vmstate.sha256 == hashlib.sha256(STATE).hexdigest()
    assert (made.vmstate.size_bytes, made.vmstate.method) == (len(STATE), None)
    assert (made.disk.size_bytes, made.memory.written_bytes) == (4 * 4096, PAGE_BYTES)
    assert made.disk.method in (Method.REFLINK, Method.COPY)
    assert [Fingerprint.of(path) for path in (live.disk, live.memory)] == before
    assert {path.stat().st_nlink for path in into.dir.iterdir()} == {1}


def test_the_vmm_writes_under_its_own_work_and_never_holds_what_is_published(
    child: Mapper, live: InstancePaths, into: SnapshotPaths
) -> None:
    """H68: a descriptor that it kept open would outlive the publication."""
    monitor = PlayedMonitor()
    captured(monitor, child, live, into)
    assert monitor.asked == [live.vmstate]
    assert live.vmstate.parent == live.work
    assert not live.vmstate.exists()


def test_a_device_state_that_an_earlier_attempt_left_is_not_taken_for_this_one(
    child: Mapper, live: InstancePaths, into: SnapshotPaths
) -> None:
    """H16."""
    live.vmstate.write_bytes(b"stale")
    stale = live.vmstate.stat().st_ino

    class Refusing(PlayedMonitor):
        def save_device_state(self, path: Path) -> None:
            assert not path.exists() or path.stat().st_ino != stale

    with pytest.raises(HostError, match="No such file"):
        captured(Refusing(), child, live, into)


@pytest.mark.parametrize(
    ("monitor", "error"),
    [
        (PlayedMonitor(state=b""), VmmError),
        (PlayedMonitor(refusal=RejectedError("no", request="save", reply="busy")), RejectedError),
        (PlayedMonitor(refusal=OSError(28, "No space left on device")), HostError),
        (PlayedMonitor(refusal=KeyboardInterrupt()), KeyboardInterrupt),
    ],
    ids=["empty", "refused", "full", "interrupted"],
)
def test_a_failed_device_state_leaves_none_behind(
    child: Mapper, live: InstancePaths, into: SnapshotPaths, monitor: PlayedMonitor, error: type[BaseException]
) -> None:
    before = own_descriptors()
    with pytest.raises(error):
        captured(monitor, child, live, into)
    assert not live.vmstate.exists()
    assert not into.memory.exists()
    assert own_descriptors() == before


def test_memory_comes_last_of_all(
    child: Mapper, live: InstancePaths, into: SnapshotPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A capture may consume the dirty set: nothing that can fail comes after it (H66)."""

    def finish(*arguments: Any, **options: Any) -> Any:
        assert into.vmstate.exists()
        assert into.disk.exists()
        return memory.finish(*arguments, **options)

    monkeypatch.setattr(module, "finish", finish)
    captured(PlayedMonitor(), child, live, into)


def test_a_first_capture_knows_no_method(tmp_path: Path, live: InstancePaths, into: SnapshotPaths) -> None:
    live.memory.unlink()
    hole(live.memory)
    with Mapper(live.memory) as child:
        child.write(0, ONES)
        made = capture(
            PlayedMonitor(),
            child.vmm,
            live=live,
            mapped_file=live.memory,
            into=into,
            base_is_empty=True,
            scatter=Scatter(),
        )
    assert made.memory.method is None
    assert into.memory.stat().st_size == live.memory.stat().st_size
