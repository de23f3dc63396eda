"""The peer: QEMU's migration stream to a file, which is also what `virsh save` and savevm write. It grows with RAM."""

from __future__ import annotations

import os
from pathlib import Path

from bench import raw
from bench.floor import clone_or_copy
from bench.measure import watch
from ramet.linux.unixsock import connect_in

UNLIMITED_BYTES_PER_S = 10**12
"""QEMU 7.2 limits a migration to 128 MiB/s otherwise."""


def save(run_dir: Path, disk: Path, into: Path, *, sync: bool) -> float:
    """Stop the VM whose sockets are in ``run_dir``, write its stream to ``into``, let it run on; seconds of stop and write.

    ``sync``: the file is fsynced within that time. Nothing is frozen in the guest. The disk that belongs to the stream is kept
    beside it, outside that time.
    """
    into.unlink(missing_ok=True)
    monitor = raw.Qmp(connect_in(run_dir, "qmp.sock"))
    fd = os.open(into, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        monitor.report_migrations()
        monitor.command("migrate-set-parameters", max_bandwidth=UNLIMITED_BYTES_PER_S)
        clock = watch()
        monitor.command("stop")
        monitor.send_descriptor("stream", fd)
        monitor.command("migrate", uri="fd:stream")
        monitor.wait_migration()
        if sync:
            os.fsync(fd)
        seconds = clock.total()
        clone_or_copy(disk, disk_of(into))
        monitor.command("cont")
        return seconds
    finally:
        os.close(fd)
        monitor.close()


def disk_of(stream: Path) -> Path:
    """The disk that belongs to a stream."""
    return stream.with_suffix(".disk")
