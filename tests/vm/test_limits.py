"""What a VMM may use of its host is limited, and no guest that keeps to its own is ever in the way of a limit."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from ramet import Host
from ramet.hypervisors import confinement
from ramet.model import MIB
from tests.file_systems import on_ext4
from tests.vm.guests import sh

DISK_BYTES = 192 * MIB
LEFT_BYTES = 500
"""Of room in a log."""


@on_ext4
def test_a_guest_whose_console_log_is_full_runs_on_and_has_all_of_its_disk(host: Host) -> None:
    """A file may become as large as the disk is, and so may its console's log. SIGXFSZ would end the VMM."""
    info = host.create("web", memory_mib=128, disk_bytes=DISK_BYTES)
    host.stop("web")
    console = Path(info.logs["console"])
    os.truncate(console, DISK_BYTES - LEFT_BYTES)
    info = host.start("web")
    sh(host, "web", "seq 1 500 >/dev/console")
    assert console.stat().st_size == DISK_BYTES
    last = DISK_BYTES // 4096 - 1
    sh(host, "web", f"printf %4096s end | dd of=/dev/vda bs=4096 seek={last} conv=notrunc,fsync 2>/dev/null")
    assert info.live_disk is not None
    with Path(info.live_disk).open("rb") as disk:
        disk.seek(-3, os.SEEK_END)
        assert disk.read() == b"end"
    host.standby("web")
    host.restore("web")
    assert sh(host, "web", "dd if=/dev/vda bs=1 skip=$((192 * 1024 * 1024 - 3)) 2>/dev/null") == "end"


@on_ext4
def test_a_vmm_that_does_its_work_is_far_from_its_limits(host: Host) -> None:
    info = host.create("web", disk_bytes=32 * MIB, cpus=2)
    sh(host, "web", "for i in 1 2 3 4 5 6 7 8; do dd if=/dev/zero of=/data/$i bs=64k count=16 & done; wait; sync")
    proc = Path(f"/proc/{info.pid}")
    descriptors, tasks = (len(list((proc / what).iterdir())) for what in ("fd", "task"))
    assert descriptors * 4 < confinement.LIMITS[resource.RLIMIT_NOFILE]
    assert tasks * 4 < confinement.TASKS
