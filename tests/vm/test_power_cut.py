"""Power cuts on real ext4 and XFS: what was said to be durable is there, and nothing is ever half there (H40, H48).

The cut is FS_IOC_SHUTDOWN: the file system stops at once, with what has not reached its device lost; then it is mounted again and
replays its journal. No guest is run.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ramet.model import Method
from ramet.paths import SnapshotPaths
from ramet.snapshots import manifest as manifests
from ramet.snapshots.publish import publish
from ramet.store import atomic, names
from ramet.store.derive import derive
from tests.capabilities import requires
from tests.unit.children import run_in_child
from tests.unit.snapshots.published import SNAPSHOT, fill
from tests.unit.steps import Steps
from tests.vm.killing import FS_IOC_SHUTDOWN, NO_LOG_FLUSH
from tools import loopfs

pytestmark = requires("loopfs")

ANY = frozenset({Method.REFLINK, Method.COPY})
OLD, NEW = b"old" * 100, b"new" * 100
TRIES = 3


@pytest.fixture(params=["ext4", "xfs"])
def mount(request: pytest.FixtureRequest) -> Iterator[Path]:
    with loopfs.loopfs(request.param, size_mib=512) as mounted:
        yield mounted


def commit_everything_else(mount: Path) -> None:
    """Another command's durable write: it commits the journal, and with it every rename so far, but no other file's bytes."""
    atomic.write_atomic(mount / "another", b"x")


def cut_power(mount: Path) -> None:
    fd = os.open(mount, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(fd, FS_IOC_SHUTDOWN, NO_LOG_FLUSH)
    finally:
        os.close(fd)
    subprocess.run(["umount", str(mount)], check=True)
    subprocess.run(["mount", "-o", "loop", str(mount.parent / "image"), str(mount)], check=True)


def test_the_cut_loses_what_was_not_synced(mount: Path) -> None:
    """The tool itself: without this, all the others prove nothing. Whoever syncs the host meanwhile saves a file from it."""

    def is_lost(path: Path) -> bool:
        path.write_bytes(NEW)
        cut_power(mount)
        return not path.exists() or path.read_bytes() == b""

    assert any(is_lost(mount / f"file{number}") for number in range(TRIES))


def test_a_durable_write_is_there(mount: Path) -> None:
    atomic.write_atomic(mount / "file", OLD)
    atomic.write_atomic(mount / "file", NEW)
    cut_power(mount)
    assert (mount / "file").read_bytes() == NEW


@pytest.mark.parametrize(
    "others", [commit_everything_else, lambda mount: None], ids=["others commit", "nobody commits"]
)
def test_a_write_that_need_not_be_durable_is_the_old_or_the_new(mount: Path, others: Callable[[Path], None]) -> None:
    """XFS keeps the rename and loses the bytes if they were not synced before it: a record would be empty, and its VM lost."""
    atomic.write_atomic(mount / "file", OLD)
    atomic.write_atomic(mount / "file", NEW, durable=False)
    others(mount)
    cut_power(mount)
    assert (mount / "file").read_bytes() in (OLD, NEW)


def test_a_claimed_name_is_there(mount: Path) -> None:
    names.claim(mount, "web", SNAPSHOT, what="instance")
    cut_power(mount)
    assert names.lookup(mount, "web") == SNAPSHOT


def test_a_published_snapshot_is_there_and_whole(mount: Path) -> None:
    manifest = fill(mount / "work")
    final = SnapshotPaths(dir=mount / SNAPSHOT)
    publish(mount / "work", final, manifest)
    memory = final.memory.read_bytes()
    cut_power(mount)
    assert manifests.load(final) == manifest
    manifests.check_files(final, manifest)
    assert final.memory.read_bytes() == memory


@pytest.mark.parametrize("step", range(14))
def test_power_cut_at_any_step_of_a_publication_leaves_it_whole_or_not_there(step: int) -> None:
    with loopfs.loopfs("xfs", size_mib=512) as mount:
        manifest = fill(mount / "work")
        final = SnapshotPaths(dir=mount / SNAPSHOT)

        def killed() -> None:
            with Steps(kill_at=step).recorded():
                publish(mount / "work", final, manifest)

        assert run_in_child(killed) == -9
        commit_everything_else(mount)
        cut_power(mount)
        if final.dir.exists():
            manifests.check_files(final, manifests.load(final))
            assert final.memory.read_bytes()[5 * 4096 :].startswith(b"guest memory")


def test_a_durable_derivation_is_there(mount: Path) -> None:
    source = mount / "source"
    atomic.write_atomic(source, os.urandom(1 << 20))
    content = source.read_bytes()
    derive(source, mount / "copy", allow=ANY, durable=True)
    cut_power(mount)
    assert (mount / "copy").read_bytes() == content
