"""The agent's eight virtio-serial ports: a client takes a free one under a lock.

A QEMU socket chardev serves one client at a time and lets a second one connect and wait for ever, so a port is used only by the
holder of its lock file's OFD lock, which goes with the process (H72).
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from ramet.errors import GuestTimeoutError, VmmDiedError, host_errors
from ramet.linux import ofdlock
from ramet.linux.unixsock import connect_in
from ramet.paths import AGENT_PORTS
from ramet.process import wait_until


class Port:
    """One taken port: a connected socket and its lock. ``close()`` twice is fine."""

    def __init__(self, sock: socket.socket, lock_fd: int) -> None:
        self.sock = sock
        self._lock_fd = lock_fd

    def close(self) -> None:
        self.sock.close()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


def take_port(run_dir: Path, *, deadline_s: float) -> Port:
    """Take a free port and connect to it.

    Raises:
        GuestTimeoutError: if all ports stay busy for ``deadline_s``, or the VMM hangs.
        VmmDiedError: if nobody listens: the VMM is gone.
    """
    try:
        number, lock_fd = wait_until(lambda: _lock_any(run_dir), deadline_s, what="a free agent port")
    except TimeoutError as err:
        raise GuestTimeoutError(
            f"All {AGENT_PORTS} of its ports stayed busy.",
            hint="Wait for other commands on this instance to end.",
        ) from err
    try:
        return Port(connect_in(run_dir, f"agent{number}.sock", deadline_s=deadline_s), lock_fd)
    except TimeoutError as err:
        os.close(lock_fd)
        raise GuestTimeoutError(
            f"The VMM hangs: it accepted no connection for the agent's port {number}.",
            hint="`ramet stop --force` ends it.",
        ) from err
    except OSError as err:
        os.close(lock_fd)
        raise VmmDiedError(f"The VMM is gone: its agent port does not answer ({err.strerror}).") from err
    except BaseException:
        os.close(lock_fd)
        raise


def _lock_any(run_dir: Path) -> tuple[int, int] | None:
    first = time.monotonic_ns()  # spreads clients over the ports
    for step in range(AGENT_PORTS):
        number = (first + step) % AGENT_PORTS
        lock_fd = _try_lock(run_dir / f"agent{number}.lock")
        if lock_fd is not None:
            return number, lock_fd
    return None


def _try_lock(path: Path) -> int | None:
    with host_errors("lock a port of the guest's agent"):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except FileNotFoundError as err:
            raise VmmDiedError(f"The instance's directory {path.parent} is gone.") from err
        try:
            locked = ofdlock.try_lock(fd)
        except BaseException:
            os.close(fd)
            raise
    if not locked:
        os.close(fd)
        return None
    return fd
