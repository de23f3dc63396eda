"""For test suites: fixtures with real VMs, and assertions that they are isolated. A pytest plugin that comes with the package.

The fixtures are a ladder, each made of the one before: ``ramet_home`` (a store with the image ``micro``; override it to choose
the place), ``ramet_host`` (what a test makes in it is removed at its end), ``ramet_running`` (``web``, booted) and
``ramet_standby`` (``web``, asleep).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ramet import Host
from ramet.config import default_home
from ramet.model import MIB, InstanceInfo
from ramet.verify import fingerprints
from ramet.verify.isolation import problems_between

IMAGE = "micro"
MEMORY_MIB = 256
DISK_BYTES = 64 * MIB


def assert_isolated(host: Host, *names: str) -> None:
    """Assert that nothing ties these instances together at this moment: no file of one is another's, by inode or by link;
    published files are 0400; every VMM maps its own memory file, privately; no process but its own VMM can write a file of any.

    Raises:
        AssertionError: naming everything that does.
    """
    problems = problems_between(host, *names)
    assert not problems, "not isolated:\n" + "\n".join(problems)


@contextmanager
def snapshot_unchanged(host: Host, name: str) -> Iterator[None]:
    """Assert that the block changes nothing of the snapshot that ``name`` sleeps on, or woke from: device, inode, size,
    SHA-256, mode and links of each of its files. The files are looked up where they were.

    Raises:
        AssertionError: naming what changed.
    """
    snapshot = host.get(name).snapshot
    assert snapshot is not None, f"{name} has no snapshot"
    directory = Path(snapshot.dir)
    before = fingerprints.fingerprints(directory)
    yield
    after = fingerprints.fingerprints(directory) if directory.is_dir() else {}
    problems = [f"{file} appeared" for file in after.keys() - before.keys()]
    for file, was in before.items():
        now = after.get(file)
        changes = ["it is gone"] if now is None else fingerprints.differences(was, now)
        problems += [f"{file}: {change}" for change in changes]
    assert not problems, f"the snapshot of {name} changed:\n" + "\n".join(problems)


@pytest.fixture(scope="session")
def ramet_home() -> Path:
    """The store: $RAMET_HOME, or the default one, with the image ``micro`` built if it is not there."""
    host = Host(default_home())
    if not any(IMAGE in tags for _, tags in host.image_list()):
        host.image_build(IMAGE)
    return host.home


@pytest.fixture
def ramet_host(ramet_home: Path) -> Iterator[Host]:
    """A Host; the instances and named snapshots that the test makes are removed at its end."""
    host = Host(ramet_home)
    instances = {info.id for info in host.list()}
    snapshots = {name for snapshot in host.snapshots() for name in snapshot.names}
    yield host
    for info in host.list():
        if info.id not in instances:
            host.remove(info.id, force=True)
    for snapshot in host.snapshots():
        for name in snapshot.names:
            if name not in snapshots:
                host.snapshot_remove(name)


@pytest.fixture
def ramet_running(ramet_host: Host) -> InstanceInfo:
    """``web``, booted."""
    return ramet_host.create("web", memory_mib=MEMORY_MIB, disk_bytes=DISK_BYTES)


@pytest.fixture
def ramet_standby(ramet_host: Host, ramet_running: InstanceInfo) -> InstanceInfo:
    """``web``, asleep."""
    return ramet_host.standby(ramet_running.name)
