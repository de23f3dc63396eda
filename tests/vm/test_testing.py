"""``ramet.testing``: its assertions pass for instances that are isolated, and name what ties together those that are not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ramet import Host
from ramet.model import InstanceInfo
from ramet.testing import assert_isolated, snapshot_unchanged
from tests.file_systems import on_ext4
from tests.unit.children import holding
from tests.vm.guests import set_marks

pytestmark = on_ext4


def directory_of(host: Host, name: str) -> Path:
    snapshot = host.get(name).snapshot
    assert snapshot is not None
    return Path(snapshot.dir)


def hold_open(path: Path, ready: Callable[[], None]) -> None:
    os.open(path, os.O_RDWR)
    ready()


def test_a_source_and_its_forks_are_isolated_whatever_they_do(host: Host, standby: InstanceInfo) -> None:
    with snapshot_unchanged(host, "web"):
        host.fork("web", ["asleep", "awake"])
        host.restore("awake")
        assert_isolated(host, "web", "asleep", "awake")
        set_marks(host, "awake", "ram-awake", "disk-awake")
        host.standby("awake")
        assert_isolated(host, "web", "asleep", "awake")
        host.remove("awake")
        host.restore("web")
        assert_isolated(host, "web", "asleep")


def test_what_ties_them_together_is_named(host: Host, standby: InstanceInfo) -> None:
    host.fork("web", "kid")
    source, kid = directory_of(host, "web"), directory_of(host, "kid")
    (kid / "vmstate").chmod(0o444)
    with pytest.raises(AssertionError, match="vmstate is 0444"):
        assert_isolated(host, "web", "kid")
    (kid / "vmstate").chmod(0o400)

    with (
        holding(
            lambda ready: hold_open(source / "disk.raw", ready)
        ) as pid,  # somebody with a descriptor that can write
        pytest.raises(AssertionError, match=rf"process {pid} has a descriptor .*disk\.raw"),
    ):
        assert_isolated(host, "web", "kid")
    assert_isolated(host, "web", "kid")

    (kid / "memory").unlink()
    (kid / "memory").hardlink_to(source / "memory")
    with pytest.raises(AssertionError, match="has 2 links") as caught:
        assert_isolated(host, "web", "kid")
    assert f"{kid / 'memory'} is {source / 'memory'}" in str(caught.value)
    (kid / "memory").unlink()
    shutil.copyfile(source / "memory", kid / "memory")
    (kid / "memory").chmod(0o400)
    assert_isolated(host, "web", "kid")


def flip_a_byte(directory: Path) -> None:
    with (directory / "disk.raw").open("r+b") as stream:
        stream.seek(5000)
        byte = stream.read(1)
        stream.seek(5000)
        stream.write(bytes((byte[0] ^ 255,)))


def replace(directory: Path) -> None:
    shutil.copyfile(directory / "disk.raw", directory / "copy")
    (directory / "copy").chmod(0o400)
    (directory / "copy").rename(directory / "disk.raw")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (flip_a_byte, r"disk\.raw: SHA-256"),
        (replace, r"disk\.raw: inode"),
        (lambda directory: (directory / "disk.raw").unlink(), r"disk\.raw: it is gone"),
        (lambda directory: (directory / "new").touch(0o400), "new appeared"),
    ],
    ids=["a byte", "another inode", "gone", "a new file"],
)
def test_a_snapshot_that_changes_is_told(
    host: Host, standby: InstanceInfo, change: Callable[[Path], None], said: str
) -> None:
    directory = directory_of(host, "web")
    with pytest.raises(AssertionError, match=said), snapshot_unchanged(host, "web"):
        change(directory)
