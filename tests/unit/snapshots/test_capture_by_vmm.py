"""A capture that the VMM writes itself, from a monitor that the test plays: this process is its VMM."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from ramet import helpers, process
from ramet.errors import HostError, NoSpaceError, RejectedError, UnsupportedError, VmmError
from ramet.model import PAGE_BYTES, Method, VmmProcess
from ramet.paths import InstancePaths, SnapshotPaths
from ramet.snapshots import capture as captures
from ramet.snapshots.capture import Captured, capture_by_vmm
from ramet.snapshots.scatter import Scatter
from ramet.store.derive import derive
from tests.unit.snapshots.memory_files import ONES, PAGES, full_base

STATE = b"device state" * 700
SIZE = PAGES * PAGE_BYTES
DIRTY = 7 * PAGE_BYTES


@dataclass
class PlayedMonitor:
    """Writes one dirty page (or every page, for a whole one) in place, and the state; then ``after``."""

    dir: Path
    state: bytes = STATE
    after: Callable[[Path], object] = lambda memory: None
    refusal: BaseException | None = None
    asked: list[tuple[bool, bytes]] = field(default_factory=list)
    """Whether a diff, and what the memory file held before it was written."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def create_snapshot(self, *, vmstate: str, memory: str, diff: bool) -> None:
        path = self.dir / memory
        self.asked.append((diff, path.read_bytes()))
        with path.open("r+b", buffering=0) as stream:
            if diff:
                stream.seek(DIRTY)
                stream.write(ONES)
            else:
                stream.write(bytes(DIRTY) + ONES + bytes(SIZE - DIRTY - PAGE_BYTES))
        if self.refusal is not None:
            raise self.refusal
        (self.dir / vmstate).write_bytes(self.state)
        self.after(path)

    def stop_vcpus(self) -> None:
        raise AssertionError("a capture neither stops nor resumes: its caller does")

    resume_vcpus = stop_vcpus

    def vcpus_running(self) -> bool:
        return False


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    path = full_base(tmp_path / "base")
    before = path.read_bytes(), path.stat()
    yield path
    assert path.read_bytes() == before[0]
    assert path.stat().st_mtime_ns == before[1].st_mtime_ns


def own_process() -> VmmProcess:
    ticks = process.start_time_ticks(os.getpid())
    assert ticks is not None
    return VmmProcess(pid=os.getpid(), start_time_ticks=ticks, boot_id=process.boot_id())


def captured(
    monitor: PlayedMonitor,
    live: InstancePaths,
    into: SnapshotPaths,
    *,
    base: Path | None,
    diff: bool = True,
    before_request: Callable[[], object] = lambda: None,
    pieces: int = 0,
) -> Captured:
    return capture_by_vmm(
        monitor,
        own_process(),
        live=live,
        base=base,
        size_bytes=SIZE,
        diff=diff,
        into=into,
        before_request=before_request,
        scatter=Scatter(pieces=pieces),
    )


def left_in(live: InstancePaths) -> list[str]:
    return sorted(path.name for path in live.work.iterdir())


def test_a_diff_goes_onto_a_derivation_and_never_onto_its_base(
    live: InstancePaths, into: SnapshotPaths, base: Path
) -> None:
    monitor = PlayedMonitor(live.dir)
    result = captured(monitor, live, into, base=base)
    assert monitor.asked == [(True, base.read_bytes())]
    expected = bytearray(base.read_bytes())
    expected[DIRTY : DIRTY + PAGE_BYTES] = ONES
    assert into.memory.read_bytes() == expected
    assert into.vmstate.read_bytes() == STATE
    assert into.disk.read_bytes() == live.disk.read_bytes()
    assert into.memory.stat().st_ino != base.stat().st_ino
    assert result.memory.method in set(Method)
    assert result.memory.written_bytes == PAGE_BYTES
    assert left_in(live) == ["disk.raw"]


def test_the_pieces_of_a_clone_are_the_extents_that_it_has_more(
    live: InstancePaths, into: SnapshotPaths, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H73: what a VMM writes passes by nobody."""
    counts = iter((3, 10))
    monkeypatch.setattr(captures, "count_extents", lambda _fd: next(counts))
    assert captured(PlayedMonitor(live.dir), live, into, base=base, pieces=5).memory.pieces == 0, "it was copied"
    counts = iter((3, 10))
    monkeypatch.setattr(captures, "derive", lambda *paths, **options: derive(*paths, **options) and Method.REFLINK)
    for path in into.dir.iterdir():
        path.unlink()
    assert captured(PlayedMonitor(live.dir), live, into, base=base, pieces=5).memory.pieces == 12


def test_the_first_one_after_a_boot_goes_onto_one_hole(live: InstancePaths, into: SnapshotPaths) -> None:
    monitor = PlayedMonitor(live.dir)
    result = captured(monitor, live, into, base=None)
    assert monitor.asked == [(True, bytes(SIZE))]
    assert into.memory.stat().st_blocks * 512 <= 2 * PAGE_BYTES
    assert result.memory.method is None


def test_a_whole_one_gives_back_its_pages_of_zeros(live: InstancePaths, into: SnapshotPaths) -> None:
    captured(PlayedMonitor(live.dir), live, into, base=None, diff=False)
    assert into.memory.read_bytes() == bytes(DIRTY) + ONES + bytes(SIZE - DIRTY - PAGE_BYTES)
    assert into.memory.stat().st_blocks * 512 < SIZE // 2


def test_without_fallocate_it_only_takes_more_room(
    live: InstancePaths, into: SnapshotPaths, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(helpers, "find_program", no_program)
    captured(PlayedMonitor(live.dir), live, into, base=None, diff=False)
    assert into.memory.read_bytes() == bytes(DIRTY) + ONES + bytes(SIZE - DIRTY - PAGE_BYTES)
    assert "keeps its pages of zeros" in caplog.text


def no_program(name: str, *, package: str) -> str:
    raise UnsupportedError(f"no {name}", capability=name, why=f"install {package}")


def test_the_request_comes_last_of_all(live: InstancePaths, into: SnapshotPaths, base: Path) -> None:
    """H66: from then on the VMM's dirty pages may be gone, so what is noted of that is noted before, and the disk is done."""
    monitor, noted = PlayedMonitor(live.dir), list[bool]()

    def note() -> None:
        assert monitor.asked == []
        noted.append(into.disk.exists() and live.next_memory.exists())

    captured(monitor, live, into, base=base, before_request=note)
    assert noted == [True]


@pytest.mark.parametrize(
    ("play", "error"),
    [
        (lambda at: PlayedMonitor(at, refusal=RejectedError("no", request="save", reply="busy")), RejectedError),
        (lambda at: PlayedMonitor(at, refusal=NoSpaceError("full")), NoSpaceError),
        (lambda at: PlayedMonitor(at, refusal=KeyboardInterrupt()), KeyboardInterrupt),
        (lambda at: PlayedMonitor(at, state=b""), VmmError),
        (lambda at: PlayedMonitor(at, after=lambda memory: os.truncate(memory, SIZE - PAGE_BYTES)), VmmError),
        (lambda at: PlayedMonitor(at, after=lambda memory: memory.unlink()), HostError),
    ],
    ids=["refused", "full", "interrupted", "no state", "cut off", "lost"],
)
def test_one_that_fails_leaves_nothing_under_work(
    live: InstancePaths,
    into: SnapshotPaths,
    base: Path,
    play: Callable[[Path], PlayedMonitor],
    error: type[BaseException],
) -> None:
    with pytest.raises(error):
        captured(play(live.dir), live, into, base=base)
    assert left_in(live) == ["disk.raw"]


def test_what_an_earlier_attempt_left_is_not_taken_for_this_one(
    live: InstancePaths, into: SnapshotPaths, base: Path
) -> None:
    """H16."""
    live.next_memory.write_bytes(b"stale")
    live.vmstate.write_bytes(b"stale")
    captured(PlayedMonitor(live.dir), live, into, base=base)
    assert into.vmstate.read_bytes() == STATE


def test_a_file_that_has_a_second_name_is_not_published(live: InstancePaths, into: SnapshotPaths, base: Path) -> None:
    """A VMM that was taken over may link within ``work/``, and write through that name afterwards."""
    monitor = PlayedMonitor(live.dir, after=lambda memory: os.link(memory, live.work / "kept"))
    with pytest.raises(VmmError, match="has a second name"):
        captured(monitor, live, into, base=base)


def test_a_file_that_the_vmm_keeps_open_is_not_published(live: InstancePaths, into: SnapshotPaths, base: Path) -> None:
    """H68: neither a rename nor a mode takes a descriptor away."""
    kept: list[int] = []
    monitor = PlayedMonitor(live.dir, after=lambda memory: kept.append(os.open(memory, os.O_RDWR)))
    try:
        with pytest.raises(VmmError, match=r"keeps .* open or mapped"):
            captured(monitor, live, into, base=base)
    finally:
        for fd in kept:
            os.close(fd)
    assert left_in(live) == ["disk.raw"]


def test_a_descriptor_on_its_way_to_another_process_is_seen(
    live: InstancePaths, into: SnapshotPaths, base: Path
) -> None:
    """It is nobody's in /proc; the kernel grants no lease."""
    ours, theirs = socket.socketpair()

    def send(memory: Path) -> None:
        with memory.open("r+b") as stream:
            socket.send_fds(ours, [b"x"], [stream.fileno()])

    with ours, theirs, pytest.raises(VmmError, match="Somebody still holds"):
        captured(PlayedMonitor(live.dir, after=send), live, into, base=base)


@pytest.mark.parametrize("state", [b"", None], ids=["huge", "a symlink"])
def test_what_is_no_device_state_is_not_read(
    live: InstancePaths, into: SnapshotPaths, base: Path, state: bytes | None
) -> None:
    def plant(_memory: Path) -> None:
        live.vmstate.unlink()
        if state is None:
            live.vmstate.symlink_to("/etc/passwd")
        else:
            with live.vmstate.open("wb") as stream:
                stream.truncate(8 << 40)

    with pytest.raises(VmmError, match="is no device state"):
        captured(PlayedMonitor(live.dir, after=plant), live, into, base=base)
