"""What `ramet du` says that is used is what the file system has less of: each shared block counts once."""

from __future__ import annotations

import os

from ramet import Host
from ramet.model import MIB, InstanceInfo
from ramet.process import wait_until
from tests.vm.guests import sh

WRITTEN_MIB = 24
SLACK_BYTES = 3 * MIB
"""Of trees of extents, directories and records, and of the last blocks that a file system sets aside for itself."""

WITHIN_S = 180.0
"""What a killed VMM had mapped, and nobody else has any more, is freed a moment after its end."""


def taken(host: Host) -> tuple[int, int]:
    """In bytes: of the file system, and as du says. What is only in the page cache has no block yet."""
    fd = os.open(host.home, os.O_RDONLY)
    try:
        os.sync()
        found = os.fstatvfs(fd)
    finally:
        os.close(fd)
    (total,) = [use for use in host.du() if use.kind == "total"]
    return (found.f_blocks - found.f_bfree) * found.f_frsize, total.allocated_bytes


def test_what_du_says_is_what_the_file_system_has_less_of(host: Host, standby: InstanceInfo) -> None:
    """Forks, a guest that writes into memory and disk, its sleep, and the end of all of it."""
    before = taken(host)

    def require_same() -> int:
        return wait_until(difference, WITHIN_S, what="the file system to agree with du")

    def difference() -> int | None:
        now = taken(host)
        of_file_system, of_du = now[0] - before[0], now[1] - before[1]
        return of_du if abs(of_file_system - of_du) <= SLACK_BYTES else None

    host.fork("web", ["one", "two", "three"])
    shared = require_same()
    host.restore("one")
    sh(host, "one", f"ramet-fill /ram/fill {WRITTEN_MIB * MIB} 1; ramet-fill /data/fill {8 * MIB} 2; sync")
    require_same()
    host.standby("one")
    written = require_same()
    assert written - shared >= (WRITTEN_MIB + 8) * MIB
    for name in ("one", "two", "three"):
        host.remove(name)
    assert abs(require_same()) <= SLACK_BYTES
