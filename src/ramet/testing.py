"""For test suites: fixtures with real VMs, and assertions that they are isolated. A pytest plugin that comes with the package.

The fixtures are a ladder, each made of the one before: ``ramet_home`` (a store of the session's own; override it to choose
the place), ``ramet_host`` (what a test makes in it is removed at its end), ``ramet_running`` (``web``, booted) and
``ramet_standby`` (``web``, asleep).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from ramet import Host
from ramet.errors import ConflictError, RametError
from ramet.model import MIB, InstanceInfo
from ramet.verify import fingerprints
from ramet.verify.isolation import as_published, problems_between

IMAGE = "micro"
MEMORY_MIB = 256
DISK_BYTES = 64 * MIB


def assert_isolated(host: Host, *names: str) -> None:
    """Assert that nothing ties these instances together at this moment: no file of one is another's, by inode or by link;
    published files are 0400; every VMM that was restored maps its own memory file, privately; no process but its own VMM can
    write a file of any. Forks under the memory policy ``share`` may have their source's snapshot, which none can write.

    Raises:
        AssertionError: naming everything that does.
    """
    if len(names) < 2:
        raise ValueError("name two instances or more")
    problems = problems_between(host, *names)
    if problems:
        raise AssertionError("not isolated:\n" + "\n".join(problems))


def _published(directory: Path) -> dict[str, fingerprints.Fingerprint]:
    found = fingerprints.fingerprints(directory)
    return {name: as_published(directory / name, one) for name, one in found.items()}


@contextmanager
def snapshot_unchanged(host: Host, name: str) -> Iterator[None]:
    """Assert that the block changes nothing of the snapshot that ``name`` sleeps on, or woke from: device, inode, size,
    SHA-256, mode and links of each of its files; but that forks which share it may read it, as a group. The files are looked up
    where they were.

    Raises:
        AssertionError: naming what changed.
    """
    snapshot = host.get(name).snapshot
    if snapshot is None:
        raise ValueError(f"{name} has no snapshot")
    directory = Path(snapshot.dir)
    before = _published(directory)
    yield
    after = _published(directory) if directory.is_dir() else {}
    problems = [f"{file} appeared" for file in after.keys() - before.keys()]
    for file, was in before.items():
        now = after.get(file)
        changes = ["it is gone"] if now is None else fingerprints.differences(was, now)
        problems += [f"{file}: {change}" for change in changes]
    if problems:
        raise AssertionError(f"the snapshot of {name} changed:\n" + "\n".join(problems))


@pytest.fixture(scope="session")
def ramet_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of this test session's own, with the image ``micro``. Override it to choose the place (reflinks!), or to keep the
    image; it must be a store that nobody else uses: whatever is in it after a test is removed.
    """
    host = Host(tmp_path_factory.mktemp("ramet"))
    host.image_build(IMAGE)
    return host.home


@pytest.fixture
def ramet_host(ramet_home: Path) -> Iterator[Host]:
    """A Host on a store without instances; those that the test makes, and its named snapshots, are removed at its end.

    Raises:
        ConflictError: if there are instances already: they are not the test's to remove.
    """
    host = Host(ramet_home)
    found = [info.name for info in host.list()]
    if found:
        raise ConflictError(f"The store {ramet_home} has instances already: {', '.join(found)}.")
    yield host
    failures: list[RametError] = []
    removals = [partial(host.remove, info.id, force=True) for info in host.list()]
    removals += [partial(host.snapshot_remove, name) for snapshot in host.snapshots() for name in snapshot.names]
    for remove in removals:
        try:
            remove()
        except RametError as err:
            failures.append(err)
    if failures:
        raise failures[0]


@pytest.fixture
def ramet_running(ramet_host: Host) -> InstanceInfo:
    """``web``, booted."""
    return ramet_host.create("web", memory_mib=MEMORY_MIB, disk_bytes=DISK_BYTES)


@pytest.fixture
def ramet_standby(ramet_host: Host, ramet_running: InstanceInfo) -> InstanceInfo:
    """``web``, asleep."""
    return ramet_host.standby(ramet_running.name)
