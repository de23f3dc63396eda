"""A VMM that a SIGKILL does not reach, since the kernel waits for a disk: commands are patient with it once. No guest is run."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ramet import process
from ramet.errors import HostError
from tests.capabilities import requires
from tools import loopfs

pytestmark = requires("loopfs")
LOOKS = 10
FIFREEZE, FITHAW = 0xC0045877, 0xC0045878
"""_IOWR('X', 119, int) and 120, <linux/fs.h>: who writes to a frozen file system waits, and cannot be killed (sb_start_write)."""


@contextmanager
def frozen(mount: Path) -> Iterator[None]:
    fd = os.open(mount, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(fd, FIFREEZE, 0)
        try:
            yield
        finally:
            fcntl.ioctl(fd, FITHAW, 0)
    finally:
        os.close(fd)


def stays_stuck(pid: int) -> Callable[[], bool]:
    """Ten looks in a row see it wait: a program that has just begun waits for a disk too, for a moment, and can be killed."""
    looks: list[bool] = []

    def look() -> bool:
        looks.append("State:\tD" in Path(f"/proc/{pid}/status").read_text())
        return len(looks) >= LOOKS and all(looks[-LOOKS:])

    return look


def test_a_vmm_that_cannot_be_killed_is_waited_for_once(tmp_path: Path) -> None:
    with loopfs.loopfs("ext4", size_mib=64) as mount:
        with frozen(mount):
            vmm = process.spawn(
                ["sh", "-c", f"echo >{mount}/file"],
                log_path=tmp_path / "vmm.log",
                pass_fds=(),
                cwd=tmp_path,
                mark=tmp_path,
            )
            process.wait_until(stays_stuck(vmm.pid), 60, what="it to wait for the disk")
            with pytest.raises(HostError, match=r"0\.2 s after SIGKILL"):
                process.kill_and_wait(vmm, kill_s=0.2)
            began = time.monotonic()
            with pytest.raises(HostError, match=rf" {process.AGAIN_S:g} s after SIGKILL") as caught:
                process.kill_and_wait(vmm, kill_s=60)
            assert time.monotonic() - began < 30
            assert "waits in the kernel" in str(caught.value.hint)
        assert process.wait_gone(vmm, 30)
