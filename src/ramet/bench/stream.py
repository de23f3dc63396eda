"""A peer: QEMU's migration stream to a file, which is also what savevm writes. It grows with RAM."""

from __future__ import annotations

import os
from pathlib import Path

from ramet.bench import hand, raw
from ramet.bench.samples import watch
from ramet.errors import host_errors
from ramet.linux.unixsock import connect_in
from ramet.paths import QMP_SOCKET

UNLIMITED_BYTES_PER_S = 10**12
"""QEMU 7.2 limits a migration to 128 MiB/s otherwise."""


def save(run_dir: Path, disk: Path, into: Path) -> float:
    """Stop the VM whose sockets are in ``run_dir``, write its stream to ``into``, fsync it, let it run on; seconds until then.

    Nothing is frozen in the guest. The disk that belongs to the stream is kept beside it, outside that time.

    Raises:
        VmmError: if QEMU refuses.
        HostError: if there is no room for it.
    """
    into.unlink(missing_ok=True)
    with raw.vmm_errors("QEMU"):
        sock = connect_in(run_dir, QMP_SOCKET)
    with raw.Qmp(sock) as monitor:
        with host_errors(f"make {into}"):
            fd = os.open(into, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            monitor.report_migrations()
            monitor.command("migrate-set-parameters", max_bandwidth=UNLIMITED_BYTES_PER_S)
            clock = watch()
            monitor.command("stop")
            try:
                monitor.send_descriptor("stream", fd)
                monitor.command("migrate", uri="fd:stream")
                monitor.wait_migration()
                with host_errors(f"write {into}"):
                    os.fsync(fd)
                seconds = clock.total()
                hand.clone_or_copy(disk, disk_of(into))
            finally:
                monitor.command("cont")
            return seconds
        finally:
            os.close(fd)


def disk_of(stream: Path) -> Path:
    """The disk that belongs to a stream."""
    return stream.with_suffix(".disk")
