"""The guest's vsock through Firecracker's unix socket: any number of connections, each made by a line of text.

When it takes a snapshot, Firecracker queues VIRTIO_VSOCK_EVENT_TRANSPORT_RESET for the guest (device_manager/persist.rs), and
tells it so when the vCPUs run again: in the VMM that goes on, and in each that loads the snapshot. The guest's driver then resets
all connections that it has, those too that it has accepted since (Linux, net/vmw_vsock/virtio_transport.c), and tells nobody.
With 1.12 that takes the first connection after each restore: as a rule before the agent has answered on it, at times later.
Upstream holds connections back until the event was handled (pull request 5882). So a session counts as open only once the agent
has answered its hello, and what may be asked twice is asked anew if it is lost after that.
"""

from __future__ import annotations

import socket
import time
from pathlib import Path

from ramet.errors import SEE_CONSOLE, GuestTimeoutError, VmmDiedError
from ramet.linux.unixsock import connect_in
from ramet.paths import VSOCK_SOCKET

AGENT_PORT = 5000
LINE_MAX = 64
RETRY_S = 0.02


def is_there(run_dir: Path) -> bool:
    """Whether the VMM of this run directory has a vsock."""
    return (run_dir / VSOCK_SOCKET).exists()


def connect(run_dir: Path, *, deadline_s: float) -> socket.socket:
    """A connection that the guest has accepted.

    Raises:
        GuestTimeoutError: if the guest accepts none within ``deadline_s``.
        VmmDiedError: if nobody listens: the VMM is gone.
    """
    end_s = time.monotonic() + deadline_s
    while True:
        left_s = end_s - time.monotonic()
        if left_s <= 0:
            raise GuestTimeoutError("It accepted no connection on its vsock.", hint=SEE_CONSOLE)
        try:
            sock = connect_in(run_dir, VSOCK_SOCKET, deadline_s=left_s)
        except TimeoutError:
            continue
        except OSError as err:
            raise VmmDiedError(f"The VMM is gone: its vsock does not answer ({err.strerror}).") from err
        try:
            if _asked(sock, end_s):
                return sock
        except BaseException:
            sock.close()
            raise
        sock.close()
        time.sleep(RETRY_S)  # nobody listens in the guest yet, or its transport was just reset


def _asked(sock: socket.socket, end_s: float) -> bool:
    """Ask for the agent's port; whether the guest has accepted (docs/vsock.md of Firecracker: ``CONNECT``, ``OK``)."""
    line = b""
    try:
        sock.settimeout(max(end_s - time.monotonic(), 0.001))
        sock.sendall(f"CONNECT {AGENT_PORT}\n".encode())
        while not line.endswith(b"\n") and len(line) < LINE_MAX:
            more = sock.recv(1)  # what follows the line is the agent's
            if not more:
                return False
            line += more
    except OSError:
        return False
    return line.startswith(b"OK ")
