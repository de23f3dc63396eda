"""Reaching a VMM's control socket, and what it means if that fails."""

from __future__ import annotations

import socket
from pathlib import Path

from ramet.errors import VmmDiedError, VmmError
from ramet.linux.unixsock import connect_in


def reach(vmm_name: str, run_dir: Path, name: str, *, deadline_s: float) -> socket.socket:
    """Connect to the socket ``name`` in a VMM's ``run_dir``.

    Raises:
        VmmDiedError: if nobody listens.
        VmmError: if no connection is accepted within ``deadline_s``.
    """
    try:
        return connect_in(run_dir, name, deadline_s=deadline_s)
    except TimeoutError as err:
        raise VmmError(
            f"{vmm_name} hangs: {run_dir / name} has accepted no connection for {deadline_s:g} s.",
            hint="`ramet stop --force` ends it.",
        ) from err
    except OSError as err:
        raise VmmDiedError(f"Could not reach {vmm_name} at {run_dir / name}: {err.strerror}.") from err
