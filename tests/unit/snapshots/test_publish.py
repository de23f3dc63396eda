"""Publication, and a fork's own copy of every file."""

from __future__ import annotations

import errno
import os
import signal
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ramet.errors import NoSpaceError
from ramet.model import MIB, InstanceRecord, Method, SnapshotFile, SnapshotKind
from ramet.paths import SnapshotPaths
from ramet.snapshots import manifest as manifests
from ramet.snapshots import publish as publish_module
from ramet.snapshots import sums
from ramet.snapshots.capture import Captured
from ramet.snapshots.publish import add_sums, adopt, derive_snapshot, describe, publish
from tests.unit.children import run_in_child
from tests.unit.snapshots.published import BUILD, INSTANCE, SNAPSHOT, fill, published, record
from tests.unit.steps import Steps

FORK_SNAPSHOT, FORK = "aaaaaaaaaaaa", "bbbbbbbbbbbb"
PUBLISHED = {"manifest.json", "vmstate", "memory", "memory.sums", "disk.raw", "disk.sums"}
STEPS = 18
"""Writing the manifest 3, chmod and fsync of six files 12, the directory, the rename, and the parent (one: both are the same)."""


@pytest.fixture
def fork() -> InstanceRecord:
    return record(id=FORK, name="web-1", snapshot=FORK_SNAPSHOT)


def test_a_published_snapshot_is_read_only_and_complete(tmp_path: Path) -> None:
    """H54."""
    snapshot, _ = published(tmp_path)
    assert {path.name for path in snapshot.dir.iterdir()} == PUBLISHED
    assert {stat.S_IMODE(path.stat().st_mode) for path in snapshot.dir.iterdir()} == {0o400}
    assert {path.stat().st_nlink for path in snapshot.dir.iterdir()} == {1}


def test_the_manifest_is_durable_before_anything_is_renamed(tmp_path: Path) -> None:
    manifest = fill(tmp_path / "work")
    with Steps().recorded() as seen:
        publish(tmp_path / "work", SnapshotPaths(dir=tmp_path / manifest.id), manifest)
    verbs = [verb for verb, _ in seen]
    assert len(seen) == STEPS
    synced = [what for verb, what in seen[: verbs.index("rename_noreplace")] if verb == "fsync"]
    assert {*PUBLISHED, "work"} <= set(synced)
    assert synced[-1] == "work", "the directory is the last thing before its rename"


@pytest.mark.parametrize("step", range(STEPS))
def test_killed_at_any_step_it_is_there_whole_or_not_at_all(tmp_path: Path, step: int) -> None:
    """H40."""
    manifest = fill(tmp_path / "work")
    final = SnapshotPaths(dir=tmp_path / manifest.id)

    def killed() -> None:
        with Steps(kill_at=step).recorded():
            publish(tmp_path / "work", final, manifest)

    assert run_in_child(killed) == -9
    if final.dir.exists():
        assert manifests.load(final) == manifest
        manifests.check_files(final, manifest)
    else:
        assert (tmp_path / "work").is_dir()


@pytest.mark.parametrize("step", range(STEPS))
def test_an_error_at_any_step_leaves_the_work_and_nothing_published(tmp_path: Path, step: int) -> None:
    manifest = fill(tmp_path / "work")
    full = OSError(errno.ENOSPC, "No space left on device")
    with (
        Steps(fail_at=step, error=full).recorded(),
        pytest.raises(NoSpaceError, match=f"publish the snapshot {manifest.id}"),
    ):
        publish(tmp_path / "work", SnapshotPaths(dir=tmp_path / manifest.id), manifest)
    assert [entry.name for entry in tmp_path.iterdir()] == ["work"]


def test_a_description_takes_everything_from_the_record_and_the_capture() -> None:
    files = {name: SnapshotFile(size_bytes=size) for name, size in (("memory", MIB), ("vmstate", 7), ("disk", 12288))}
    made = describe(
        SNAPSHOT, record(), BUILD, Captured(**files, dirty=None), kind=SnapshotKind.DIFF, parent="cccccccccccc"
    )
    assert (made.id, made.vmstate_id, made.parent, made.kind) == (SNAPSHOT, SNAPSHOT, "cccccccccccc", SnapshotKind.DIFF)
    assert (made.instance_id, made.instance_name, made.image) == (INSTANCE, "web", "1mage")
    assert (made.memory_mib, made.cpus, made.vmm_build) == (1, 2, BUILD)
    assert {"memory": made.memory, "vmstate": made.vmstate, "disk": made.disk} == files


def test_a_fork_gets_inodes_of_its_own_with_the_same_bytes(tmp_path: Path, fork: InstanceRecord) -> None:
    """H01, H20, H25."""
    source, manifest = published(tmp_path)
    work = tmp_path / "work"
    work.mkdir()
    before = {path.name: (path.stat(), path.read_bytes()) for path in source.dir.iterdir()}
    mine = derive_snapshot(source, manifest, work, fork=fork)
    final = SnapshotPaths(dir=tmp_path / FORK_SNAPSHOT)
    publish(work, final, mine)
    manifests.check_files(final, manifests.load(final))
    for name, (stat_before, content) in before.items():
        path = source.dir / name
        assert (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) == (
            stat_before.st_ino,
            stat_before.st_mtime_ns,
            content,
        )
        assert (final.dir / name).stat().st_ino != stat_before.st_ino
        if name != "manifest.json":
            assert (final.dir / name).read_bytes() == content


def test_a_fork_s_manifest_is_its_own_and_keeps_the_tie_between_the_files(tmp_path: Path, fork: InstanceRecord) -> None:
    """H16: ``vmstate_id`` says which capture the device state, the memory and the disk belong to."""
    source, manifest = published(tmp_path)
    work = tmp_path / "work"
    work.mkdir()
    mine = derive_snapshot(source, manifest, work, fork=fork)
    assert (mine.id, mine.instance_id, mine.instance_name) == (FORK_SNAPSHOT, FORK, "web-1")
    assert (mine.kind, mine.parent) == (SnapshotKind.FORK, SNAPSHOT)
    assert (mine.vmstate_id, mine.vmstate.sha256) == (manifest.vmstate_id, manifest.vmstate.sha256)
    assert mine.vmm_build == manifest.vmm_build
    for file in (mine.memory, mine.vmstate, mine.disk):
        assert file.method in (Method.REFLINK, Method.COPY), "H30: how is told"
        assert file.written_bytes == 0


def test_adopting_files_needs_the_fork_s_snapshot_id(tmp_path: Path) -> None:
    _, manifest = published(tmp_path)
    with pytest.raises(ValueError, match="snapshot id"):
        adopt(manifest, fork=record(snapshot=None), memory=None, disk=None, vmstate=None)


@pytest.mark.parametrize("step", ["pwrite", "preadv", "fsync", "ftruncate"])
def test_an_error_while_summing_up_is_told_and_ends_all_that_was_begun(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = fill(tmp_path / "work")
    files = SnapshotPaths(dir=tmp_path / "work")
    files.memory_sums.unlink()
    files.disk_sums.unlink()

    def full(*_arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = {thread.name for thread in threading.enumerate()}
    with monkeypatch.context() as patched:
        patched.setattr(os, step, full)
        with pytest.raises(NoSpaceError, match=f"sum up the snapshot {manifest.id}"):
            add_sums(files, manifest, base=None, dirty=None)
    assert {thread.name for thread in threading.enumerate()} == before


def test_sums_of_a_base_that_has_none_are_taken_of_everything(tmp_path: Path) -> None:
    """They may have been lost: the next sleep has them again."""
    base, manifest = published(tmp_path)
    base.disk_sums.unlink()
    fill(tmp_path / "next")
    files = SnapshotPaths(dir=tmp_path / "next")
    files.memory_sums.unlink()
    files.disk_sums.unlink()
    made = add_sums(files, manifest, base=base, dirty=())
    assert (made.memory.root, made.disk.root) == (manifest.memory.root, manifest.disk.root)


def test_what_is_said_to_be_unchanged_is_not_looked_at(tmp_path: Path) -> None:
    base, manifest = published(tmp_path)
    fill(tmp_path / "next")
    files = SnapshotPaths(dir=tmp_path / "next")
    files.memory_sums.unlink()
    files.disk_sums.unlink()
    with files.memory.open("r+b") as stream:
        stream.write(b"a page that nobody has told of")
    assert add_sums(files, manifest, base=base, dirty=()).memory.root == manifest.memory.root
    files.memory_sums.unlink()
    files.disk_sums.unlink()
    assert add_sums(files, manifest, base=base, dirty=[(0, 4096)]).memory.root != manifest.memory.root


def test_the_error_that_came_first_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not that the other file's threads were told to stop because of it."""
    manifest = fill(tmp_path / "work")
    files = SnapshotPaths(dir=tmp_path / "work")
    files.memory_sums.unlink()
    files.disk_sums.unlink()
    update, told = sums.update, list[bool]()

    def failing(content_fd: int, sums_fd: int, *arguments: Any, **options: Any) -> str:
        if os.path.samestat(os.fstat(content_fd), files.disk.stat()):
            raise OSError(errno.ENOSPC, "No space left on device")
        told.append(options["stop"].wait(10))
        return update(content_fd, sums_fd, *arguments, **options)

    monkeypatch.setattr(sums, "update", failing)
    with pytest.raises(NoSpaceError):
        add_sums(files, manifest, base=None, dirty=None)
    assert told == [True], "the other is told to stop"


def test_damaged_sums_of_a_base_are_not_passed_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base, manifest = published(tmp_path)
    base.memory_sums.chmod(0o600)
    base.memory_sums.write_bytes(b"")
    fill(tmp_path / "next")
    files = SnapshotPaths(dir=tmp_path / "next")
    files.memory_sums.unlink()
    files.disk_sums.unlink()
    assert add_sums(files, manifest, base=base, dirty=()).memory.root == manifest.memory.root
    assert "memory.sums are of no use" in caplog.text


def test_a_fork_of_a_snapshot_that_has_lost_its_sums_has_them_again(tmp_path: Path, fork: InstanceRecord) -> None:
    source, manifest = published(tmp_path)
    whole = source.memory_sums.read_bytes()
    source.memory_sums.unlink()
    (tmp_path / "work").mkdir()
    derive_snapshot(source, manifest, tmp_path / "work", fork=fork)
    assert (tmp_path / "work/memory.sums").read_bytes() == whole


def test_an_interruption_waits_for_no_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that takes long keeps nobody from undoing the rest: a guest that was frozen for this runs on."""
    manifest = fill(tmp_path / "work")
    files = SnapshotPaths(dir=tmp_path / "work")
    for path in (files.memory_sums, files.disk_sums):
        path.unlink()
    syncing, let_go = threading.Event(), threading.Event()

    def sync(_path: Path) -> None:
        syncing.set()
        assert let_go.wait(60)

    def interrupt() -> None:
        assert syncing.wait(60)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(publish_module, "_make_durable", sync)
    thread = threading.Thread(target=interrupt)
    began = time.monotonic()
    try:
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            add_sums(files, manifest, base=None, dirty=None)
        assert time.monotonic() - began < 30
    finally:
        let_go.set()
        thread.join()
