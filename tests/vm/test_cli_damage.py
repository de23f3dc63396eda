"""Damage as a user meets it: it is seen in ``ls``, refused in words, and nothing is made worse; ``rm --force`` ends it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ramet import Host
from ramet.errors import CorruptError
from ramet.model import InstanceInfo
from tests.vm.command_line import CommandLine, listing

CORRUPT_STATUS = CorruptError.exit_status
pytestmark = pytest.mark.parametrize("file_system", ["ext4"], indirect=True)


def cut(path: Path) -> None:
    """Lose the second half of a file."""
    path.chmod(0o600)
    os.truncate(path, path.stat().st_size // 2)


def record(host: Host, info: InstanceInfo) -> Path:
    return host.home / "instances" / info.id / "instance.json"


def manifest(_host: Host, info: InstanceInfo) -> Path:
    assert info.snapshot
    return Path(info.snapshot.dir) / "manifest.json"


def memory(_host: Host, info: InstanceInfo) -> Path:
    assert info.snapshot
    return Path(info.snapshot.memory)


def contents(home: Path, damaged: Path) -> tuple[dict[str, list[str]], bytes]:
    found = listing(home)
    del found["locks"]
    return found, damaged.read_bytes()[:4096]


@pytest.mark.parametrize(
    ("damaged", "said_by_ls", "can_show", "can_rm"),
    [(record, "is damaged", False, False), (manifest, "is damaged", True, True), (memory, None, True, True)],
    ids=["record", "manifest", "memory"],
)
def test_damage_is_told_and_made_no_worse(
    host: Host,
    standby: InstanceInfo,
    damaged: Callable[[Host, InstanceInfo], Path],
    said_by_ls: str | None,
    can_show: bool,
    can_rm: bool,
) -> None:
    ramet = CommandLine(host.home)
    path = damaged(host, standby)
    cut(path)
    before = contents(host.home, path)

    listed = ramet.run("ls", "-q")
    assert (listed.status, listed.out) == (0, b"web\n")
    if said_by_ls is None:
        assert listed.err == "", "ls does not read memory files"
    else:
        assert listed.err.startswith("ramet: warning: web: ")
        assert said_by_ls in listed.err
        assert len(listed.err.splitlines()) == 1
    if can_show:
        ramet.text("show", "web")
    else:
        assert str(path) in ramet.run("show", "web").refused(CORRUPT_STATUS)
    for argv in (("restore", "web"), ("fork", "web")):
        assert str(path) in ramet.run(*argv).refused(CORRUPT_STATUS)
    assert contents(host.home, path) == before

    if not can_rm:
        ramet.run("rm", "web").refused(CORRUPT_STATUS)
        assert contents(host.home, path) == before
    assert ramet.run("rm", "web", *([] if can_rm else ["--force"])).status == 0
    assert ramet.json("ls") == []
    for snapshot in host.snapshots():
        host.snapshot_remove(snapshot.id)  # of a record that could not be read, nobody knew it


def test_a_guest_whose_memory_file_was_deleted_runs_on_and_its_disk_can_be_kept(
    host: Host, running: InstanceInfo
) -> None:
    """Nothing can be captured of it any more: every verb that would says so, and what to do."""
    ramet = CommandLine(host.home)
    ramet.text("exec", "web", "--", "sh", "-c", "echo kept >/data/mark; sync")
    maps = host.get("web").mapped_memory
    assert maps is not None
    Path(maps.path).unlink()
    for argv in (("standby", "web"), ("fork", "web"), ("snapshot", "create", "web")):
        said = ramet.run(*argv).refused(CORRUPT_STATUS)
        assert maps.path in said
        assert "`ramet stop web` keeps its disk" in said
        assert ramet.text("exec", "web", "--", "cat", "/data/mark") == "kept\n"
    assert ramet.run("stop", "web").status == 0
    assert ramet.run("start", "web").status == 0
    assert ramet.text("exec", "web", "--", "cat", "/data/mark") == "kept\n"
