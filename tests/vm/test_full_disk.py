"""A disk that fills up: a clear error, the guest running on, nothing kept, and nothing lost to the next snapshot (H12)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ramet import Host
from ramet.errors import NoSpaceError
from ramet.linux.mounts import file_system_of
from ramet.model import MIB, State
from tests import guest_images
from tests.capabilities import requires
from tests.vm.guests import sh
from tools.loopfs import loopfs

pytestmark = requires("loopfs", "qemu")
SIZE_MIB = 640
ROOM_LEFT_BYTES = 24 * MIB
ROOM_FOR_A_GUEST_BYTES = 40 * MIB
"""More than a guest takes that writes 20 MiB, with its journal and its inodes; less than it has changed in its memory."""


@pytest.fixture(scope="module", params=["ext4", "xfs"])
def small_host(request: pytest.FixtureRequest) -> Iterator[Host]:
    with loopfs(request.param, size_mib=SIZE_MIB) as mount:
        host = Host(guest_images.give(mount / "home"))
        yield host
        for info in host.list():
            host.remove(info.name, force=True)


def _use_up(home: Path, *, leaving_bytes: int = ROOM_LEFT_BYTES) -> Path:
    ballast = home.parent / "ballast"
    with ballast.open("wb") as stream:
        found = os.statvfs(home)
        os.posix_fallocate(stream.fileno(), 0, found.f_bavail * found.f_frsize - leaving_bytes)
    return ballast


def _store(host: Host) -> dict[str, list[str]]:
    return {place: sorted(p.name for p in (host.home / place).iterdir()) for place in ("instances", "snapshots", "tmp")}


def test_every_verb_that_needs_room_fails_whole(small_host: Host) -> None:
    host = small_host
    host.create("web", disk_bytes=64 * MIB)
    sh(host, "web", f"ramet-fill /ram/fill {32 * MIB} 1")
    total = sh(host, "web", "ramet-fill --sum /ram/fill")
    ballast = _use_up(host.home)
    before = _store(host)
    for attempt in range(2):
        with pytest.raises(NoSpaceError, match="nothing was kept"):
            host.standby("web")
        assert host.get("web").state is State.RUNNING, attempt
        assert sh(host, "web", "ramet-fill --sum /ram/fill") == total
    with pytest.raises(NoSpaceError):
        host.fork("web", ["one", "two"])
    with pytest.raises(NoSpaceError):
        host.snapshot_create("web", "golden")
    assert host.get("web").state is State.RUNNING
    assert _store(host) == before
    assert not host.exists("one")
    assert sh(host, "web", "cat /sys/fs/cgroup/workload/cgroup.freeze") == "0"
    ballast.unlink()
    host.standby("web")
    host.restore("web")
    assert sh(host, "web", "ramet-fill --sum /ram/fill") == total
    host.remove("web", force=True)


def test_a_restore_without_room_leaves_the_instance_asleep(small_host: Host) -> None:
    """On ext4 the live disk is a copy, and so the restore fails; on XFS the clones need next to nothing."""
    host = small_host
    host.create("web", disk_bytes=128 * MIB)
    sh(host, "web", f"echo kept >/ram/mark; ramet-fill /data/fill {48 * MIB} 1; sync")
    host.standby("web")
    ballast = _use_up(host.home)
    if file_system_of(host.home) == "ext4":
        with pytest.raises(NoSpaceError):
            host.restore("web")
        assert host.get("web").state is State.STANDBY
        assert _store(host)["tmp"] == []
        ballast.unlink()
    host.restore("web")
    ballast.unlink(missing_ok=True)
    assert sh(host, "web", "cat /ram/mark") == "kept"
    host.remove("web", force=True)


def test_a_guest_that_needed_room_meanwhile_runs_on(small_host: Host) -> None:
    """H43: memory is copied while the guest runs. QEMU stops one whose disk gets no block, and does not let it run by itself.

    During each verb it takes blocks that it did not have, and then writes over them: it never fills the disk by itself, for it
    would be stopped where no verb is at work.
    """
    host = small_host
    host.create("web", disk_bytes=64 * MIB)
    sh(host, "web", f"ramet-fill /ram/fill {48 * MIB} 1")
    host.standby("web")
    host.restore("web")
    sh(host, "web", f"ramet-fill /ram/more {48 * MIB} 2")
    overwrite = "dd if=/dev/urandom of=/data/$0-$((turn % 10)) bs=64k count=16 conv=notrunc,fsync"
    writes = f"turn=0; while :; do {overwrite}; turn=$((turn + 1)); done"
    ballast = _use_up(host.home, leaving_bytes=ROOM_FOR_A_GUEST_BYTES)
    for name, verb in (
        ("forked", lambda: host.fork("web", ["one", "two"])),
        ("named", lambda: host.snapshot_create("web", "golden")),
    ):
        sh(host, "web", f"sh -c '{writes}' {name} >/dev/null 2>&1 &")
        with pytest.raises(NoSpaceError):
            verb()
        assert sh(host, "web", "echo up") == "up"
    ballast.unlink()
    sh(host, "web", "dd if=/dev/zero of=/data/last bs=64k count=16 conv=fsync 2>/dev/null")
    host.remove("web", force=True)
