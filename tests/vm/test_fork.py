"""Forks of sleeping, stopped, running and named sources, one and many; down chains, and with their sources gone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ramet import Host, helpers
from ramet.errors import ConflictError, InUseError, NotFoundError, StateError, UnsupportedError
from ramet.instances import fork
from ramet.linux.mounts import file_system_of
from ramet.model import Hypervisor, InstanceInfo, Method, State
from ramet.snapshots import capture
from ramet.testing import assert_isolated
from ramet.verify.fingerprints import fingerprints
from tests.kept import write_out
from tests.vm.guests import marks, set_marks, sh


def snapshot_dir(host: Host, name: str) -> Path:
    snapshot = host.get(name).snapshot
    assert snapshot is not None
    return Path(snapshot.dir)


def require_clean_disk(disk: Path) -> None:
    """``e2fsck`` finds nothing to mend, and no journal to replay."""
    checked = helpers.run(
        [helpers.find_program("e2fsck", package="e2fsprogs"), "-f", "-n", str(disk)],
        timeout_s=60,
        env={**os.environ, "LC_ALL": "C"},
    )
    assert "recover" not in checked.stdout.decode() + checked.stderr, checked


def test_siblings_write_the_same_pages_and_blocks(host: Host, standby: InstanceInfo) -> None:
    """H20: each has its own memory and its own disk, and every file system is clean."""
    write_out(snapshot_dir(host, "web"))
    before = fingerprints(snapshot_dir(host, "web"))
    report = host.fork("web", ["a", "b", "c"], start=True)
    assert [info.state for info in report.instances] == [State.RUNNING] * 3
    assert report.method is (Method.REFLINK if file_system_of(host.home) == "xfs" else Method.COPY)
    for name in "abc":
        assert marks(host, name) == ("ram-source", "disk-source")
        set_marks(host, name, f"ram-{name}", f"disk-{name}")
    assert_isolated(host, "web", "a", "b", "c")
    for name in "abc":
        assert marks(host, name) == (f"ram-{name}", f"disk-{name}")
        host.stop(name)
        disk = host.get(name).live_disk
        assert disk is not None
        require_clean_disk(Path(disk))
    assert fingerprints(snapshot_dir(host, "web")) == before
    host.restore("web")
    assert marks(host, "web") == ("ram-source", "disk-source")


@pytest.mark.parametrize("file_system", ["ext4"], indirect=True)
def test_an_image_stays_while_an_instance_or_a_named_snapshot_boots_it(host: Host, standby: InstanceInfo) -> None:
    """A fork of the snapshot wakes without the image, but could never be started again."""
    host.snapshot_create("web", "golden")
    with pytest.raises(NotFoundError) as caught:
        host.fork("golden", ["x"])
    assert caught.value.hint == "There is a snapshot of that name: write snapshot:golden."
    with pytest.raises(InUseError, match="in use by web, snapshot:golden"):
        host.image_remove("micro")
    host.remove("web")
    with pytest.raises(InUseError, match="in use by snapshot:golden"):
        host.image_remove("micro")
    assert [names for _, names in host.image_list()] == [("micro",)]


def test_a_chain_of_forks_survives_the_loss_of_its_middle_and_its_source(host: Host, standby: InstanceInfo) -> None:
    """H41."""
    previous = "web"
    for depth in range(1, 4):
        name = f"deep-{depth}"
        host.fork(previous, [name], start=True)
        set_marks(host, name, f"ram-{depth}", f"disk-{depth}")
        host.standby(name)
        previous = name
    assert [ancestor.name for ancestor in host.get("deep-3").lineage] == ["web", "deep-1", "deep-2"]
    host.remove("deep-2")
    host.remove("web")
    for depth in (1, 3):
        host.restore(f"deep-{depth}")
        assert marks(host, f"deep-{depth}") == (f"ram-{depth}", f"disk-{depth}")
        host.standby(f"deep-{depth}")
        host.restore(f"deep-{depth}")
        assert marks(host, f"deep-{depth}") == (f"ram-{depth}", f"disk-{depth}")


def test_a_fork_of_a_stopped_source_boots_its_disk(host: Host, running: InstanceInfo) -> None:
    host.stop("web")
    report = host.fork("web", ["fresh"])
    assert report.instances[0].state is State.STOPPED
    host.start("fresh")
    assert sh(host, "fresh", "cat /data/mark; hostname") == "disk-source\nfresh"
    set_marks(host, "fresh", "ram-fresh", "disk-fresh")
    host.start("web")
    assert sh(host, "web", "cat /data/mark") == "disk-source"


def test_a_fork_of_a_named_snapshot_outlives_its_instance(host: Host, running: InstanceInfo) -> None:
    host.snapshot_create("web", "golden")
    set_marks(host, "web", "ram-later", "disk-later")
    host.remove("web", force=True)
    host.fork("snapshot:golden", ["g1"], start=True)
    assert marks(host, "g1") == ("ram-source", "disk-source")
    host.snapshot_remove("golden")
    host.standby("g1")
    host.restore("g1")
    assert marks(host, "g1") == ("ram-source", "disk-source")


def test_many_forks_get_free_names_and_a_taken_one_makes_none(host: Host, standby: InstanceInfo) -> None:
    report = host.fork("web", count=2)
    assert [info.name for info in report.instances] == ["web-1", "web-2"]
    assert [info.name for info in host.fork("web", count=1).instances] == ["web-3"]
    with pytest.raises(ConflictError):
        host.fork("web", ["new", "web-2"])
    assert not host.exists("new")
    assert len(host.list()) == 4


@pytest.mark.parametrize("at", ["capture", "second fork"])
def test_a_failed_fork_leaves_the_source_running(
    host: Host, booted: InstanceInfo, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """H43, H71: whether it fails while the source is frozen or later, it runs on, neither paused nor frozen; H44: the fork made
    first is gone.
    """
    broken, function, calls_before = {
        "capture": (capture, "derive", 0),
        "second fork": (fork, "_derive_one", 1),
    }[at]
    real, calls = getattr(broken, function), 0

    def fail(*arguments: object, **named: object) -> object:
        nonlocal calls
        calls += 1
        if calls > calls_before:
            raise OSError(5, "Input/output error")
        return real(*arguments, **named)

    monkeypatch.setattr(broken, function, fail)
    with pytest.raises(OSError, match="Input/output"):
        host.fork("web", ["x", "y"])
    assert calls == calls_before + 1
    assert host.get("web").state is State.RUNNING
    set_marks(host, "web", "ram-on", "disk-on")
    assert marks(host, "web") == ("ram-on", "disk-on")
    assert [info.name for info in host.list()] == ["web"]
    assert host.snapshots() == []
    assert list((host.home / "tmp").iterdir()) == []


def test_a_failed_instance_cannot_be_forked(host: Host, standby: InstanceInfo) -> None:
    from tests.vm.test_life import _lose_vmm

    _lose_vmm(host, "web")
    with pytest.raises(StateError):
        host.fork("web", ["x"])


@pytest.mark.parametrize("file_system", ["xfs"], indirect=True)
def test_only_a_stopped_source_can_be_forked_into_another_hypervisor(
    host: Host, standby: InstanceInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory and device state are one VMM's own; nothing is made where it is refused."""
    firecracker = Hypervisor.FIRECRACKER
    named = host.snapshot_create("web", "golden")
    for source in ("web", "snapshot:golden", f"snapshot:{named.id}"):
        with pytest.raises(UnsupportedError, match="no other VMM can load"):
            host.fork(source, ["kid"], hypervisor=firecracker)
    host.restore("web")
    with pytest.raises(UnsupportedError, match="no other VMM can load"):
        host.fork("web", ["kid"], hypervisor=firecracker)
    assert marks(host, "web") == ("ram-source", "disk-source")
    host.stop("web")
    monkeypatch.setenv("RAMET_FIRECRACKER", "/nowhere/firecracker")
    with pytest.raises(UnsupportedError, match="RAMET_FIRECRACKER names"):
        host.fork("web", ["kid"], hypervisor=firecracker)
    assert [info.name for info in host.list()] == ["web"]
    (kid,) = host.fork("web", ["kid"], hypervisor=Hypervisor.QEMU).instances
    assert (kid.hypervisor, kid.state) == (Hypervisor.QEMU, State.STOPPED)
