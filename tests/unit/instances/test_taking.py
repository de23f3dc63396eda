"""How scattered the base of a capture is (H73), and what a guest finds that runs on after a capture that failed (H43)."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Self

import msgspec
import pytest

from ramet.errors import CorruptError, NoSpaceError
from ramet.hypervisors.base import DirtySince
from ramet.instances import taking
from ramet.instances.context import Locked
from ramet.model import Manifest, State
from ramet.paths import SnapshotPaths
from ramet.snapshots import manifest as manifests
from tests.unit.children import identity
from tests.unit.instances.place import INSTANCE, OTHER, Place


@pytest.mark.parametrize(("taken_of", "pieces"), [(INSTANCE, 4000), (OTHER, 0)])
def test_what_a_source_has_scattered_is_not_its_forks(
    place: Place, taken_of: str, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fork that shares its source's snapshot copies no more than one with a snapshot of its own."""
    load = manifests.load

    def scattered(paths: SnapshotPaths) -> Manifest:
        found = load(paths)
        memory = msgspec.structs.replace(found.memory, pieces=4000)
        return msgspec.structs.replace(found, instance_id=taken_of, memory=memory)

    monkeypatch.setattr(manifests, "load", scattered)
    instance = Locked(place.store, place.record)
    assert taking._scatter(instance, place.snapshot_id, guest_waits=False).pieces == pieces


def test_a_base_that_cannot_be_read_counts_as_whole(place: Place) -> None:
    place.snapshot.manifest.chmod(0o600)
    place.snapshot.manifest.write_bytes(b"{")
    instance = Locked(place.store, place.record)
    assert taking._scatter(instance, place.snapshot_id, guest_waits=True).pieces == 0


class Monitor:
    """Of a guest that QEMU has stopped: its disk had no room."""

    def __init__(self, home: Path, *, runs: bool) -> None:
        self.home = home
        self.runs = runs
        self.left: list[list[str]] = []
        """The files of work in progress, whenever the guest was let run."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def vcpus_running(self) -> bool:
        return self.runs

    def resume_vcpus(self) -> None:
        self.runs = True
        self.left.append(files_in(self.home / "tmp"))


def files_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.rglob("*") if path.is_file())


@pytest.fixture
def full(place: Place, monkeypatch: pytest.MonkeyPatch) -> Monitor:
    """A guest that runs, and whose capture fills the disk."""
    place.paths.memory.touch()
    monkeypatch.setattr("ramet.linux.procfs.mappings_of_file", lambda *_: [place.paths.memory])
    place.change(state=State.RUNNING, vmm=identity(os.getpid()))
    monitor = Monitor(place.store.paths.home, runs=True)
    driver = SimpleNamespace(connect=lambda _run_dir: monitor, dirty_since=DirtySince.MAPPED)

    def begin(_instance: object, into: Path) -> None:
        into.write_bytes(b"copied ahead")

    @contextmanager
    def frozen(_monitor: object, _run_dir: object, *, already: bool) -> Iterator[None]:
        assert not already
        monitor.runs = False
        try:
            yield
        finally:
            monitor.resume_vcpus()

    def capture(*_: object, into: SnapshotPaths, **__: object) -> None:
        into.disk.write_bytes(b"half")
        into.vmstate.write_bytes(b"half")
        raise NoSpaceError("No room.")

    monkeypatch.setattr(Locked, "driver", property(lambda _self: driver))
    monkeypatch.setattr(taking, "_memory_ahead", begin)
    monkeypatch.setattr(taking.guest, "frozen", frozen)  # type: ignore[attr-defined]
    monkeypatch.setattr(taking.captures, "capture", capture)  # type: ignore[attr-defined]
    return monitor


def test_a_guest_runs_on_once_there_is_room_again(place: Place, full: Monitor) -> None:
    instance = Locked(place.store, place.record)
    with ExitStack() as stack, pytest.raises(NoSpaceError):
        taking.take(instance, "fork", stack)
    assert full.left == [[]], "nothing takes room any more when it runs on"
    assert full.runs


def test_a_guest_that_was_stopped_while_it_was_copied_is_let_run(
    place: Place, full: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy fails before the pause: nobody else would let it run."""

    def begin(_instance: object, into: Path) -> None:
        into.write_bytes(b"half")
        full.runs = False
        raise NoSpaceError("No room.")

    monkeypatch.setattr(taking, "_memory_ahead", begin)
    instance = Locked(place.store, place.record)
    with ExitStack() as stack, pytest.raises(NoSpaceError):
        taking.take(instance, "fork", stack)
    assert full.left == [[]]
    assert full.runs


def test_files_that_cannot_be_removed_hide_nothing(
    place: Place, full: Monitor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk that is broken, say: what ended the capture is told, and each file is tried."""
    tried: list[str] = []

    def broken(path: Path, *, missing_ok: bool = False) -> None:
        assert missing_ok
        tried.append(path.name)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    instance = Locked(place.store, place.record)
    with taking.begun(instance, full, guest_waits=False) as work, monkeypatch.context() as patch:  # type: ignore[arg-type]
        full.runs = False
        patch.setattr(Path, "unlink", broken)
        with pytest.raises(NoSpaceError):
            taking.captured(instance, full, work)  # type: ignore[arg-type]
    assert len(tried) == 3
    assert "takes room while the guest runs on: Input/output error" in caplog.text


def test_what_the_vmm_maps_is_captured_and_not_what_has_its_place(place: Place) -> None:
    """Of a file of its own that somebody has deleted, the snapshot's that it was cloned from is not it."""
    vmm = identity(os.getpid())
    place.change(state=State.RUNNING, vmm=vmm, mapped_snapshot=place.snapshot_id)
    place.paths.memory.write_bytes(b"m" * mmap.PAGESIZE)
    with place.paths.memory.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ):
        assert taking._mapped_file(place.store, place.record, vmm) == place.paths.memory
        place.paths.memory.unlink()
        with pytest.raises(CorruptError, match=f"somebody has deleted .{place.paths.memory}"):
            taking._mapped_file(place.store, place.record, vmm)
