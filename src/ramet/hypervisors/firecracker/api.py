"""Firecracker's REST interface over its unix socket: the few requests that Ramet makes.

Lower-layer exceptions are mapped here, once: a refusal is ``RejectedError``, a lost connection ``VmmDiedError``, silence
``VmmError``.
"""

from __future__ import annotations

import errno
import http.client
import logging
import os
import re
import socket
import time
from pathlib import Path
from typing import Any

import msgspec

from ramet.closing import Closing
from ramet.errors import RejectedError, VmmDiedError, VmmError, host_error
from ramet.hypervisors.control import reach
from ramet.paths import API_SOCKET

log = logging.getLogger("ramet.firecracker")
HTTP_ERROR = 400
WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
"""How Rust's std::io::Error ends its text."""
CAPTURE_S = 600.0
"""How long a snapshot or a load may take: a guest's whole memory may be written to a slow disk."""
ANSWER_MAX_BYTES = 64 * 1024
FAULT_MAX_CHARACTERS = 2000
"""A Firecracker that was taken over may send what it likes; what it says of a failure is shown to a person."""


class _Fault(msgspec.Struct):
    fault_message: str = ""


class _Instance(msgspec.Struct):
    state: str


class _Socket(socket.socket):
    """One with an end for all that is received: a time-out is one call's, and an answer may come byte by byte."""

    ends_at = 0.0
    """Of the monotonic clock."""

    def recv_into(self, *arguments: Any) -> int:
        """What answers are read by."""
        left_s = self.ends_at - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self.settimeout(left_s)
        return super().recv_into(*arguments)


class _Connection(http.client.HTTPConnection):
    """HTTP over a socket that is connected already."""

    sock: _Socket | None

    def __init__(self, sock: socket.socket) -> None:
        super().__init__("localhost")
        self.sock = _Socket(fileno=sock.detach())


class FirecrackerMonitor(Closing):
    """One connection to one Firecracker. ``close()`` twice is fine."""

    def __init__(self, run_dir: Path, *, deadline_s: float) -> None:
        """Connect.

        Raises:
            VmmDiedError: if nobody listens.
            VmmError: if it accepts no connection within ``deadline_s``.
        """
        self._run_dir = run_dir
        self._timeout_s = deadline_s
        self._http = self._connected()

    def _connected(self) -> _Connection:
        return _Connection(reach("Firecracker", self._run_dir, API_SOCKET, deadline_s=self._timeout_s))

    def close(self) -> None:
        """Disconnect."""
        self._http.close()

    def request(self, method: str, path: str, body: object = None, *, timeout_s: float | None = None) -> bytes:
        """Make one request and return the answer's body, on a new connection if the last request was cut short: Firecracker
        answers one after the other, so this one then waits for that one.

        Raises:
            RejectedError: if Firecracker refused it.
            VmmDiedError: if the connection broke: what it has done of the request is unknown.
            VmmError: if there was no whole answer in time, or a longer one than Firecracker gives.
        """
        what = f"{method} {path}"
        log.debug("API -> %s %s", what, body)
        limit_s = timeout_s or self._timeout_s
        if self._http.sock is None:
            self._http, limit_s = self._connected(), CAPTURE_S
        assert self._http.sock is not None
        try:
            self._http.sock.settimeout(limit_s)
            self._http.sock.ends_at = time.monotonic() + limit_s
            data = None if body is None else msgspec.json.encode(body)
            self._http.request(method, path, data, {"Content-Type": "application/json"} if data else {})
            answer = self._http.getresponse()
            text = answer.read(ANSWER_MAX_BYTES + 1)
        except TimeoutError as err:
            self.close()
            raise VmmError(f"Firecracker did not answer {what} within {limit_s:g} s.") from err
        except (OSError, http.client.HTTPException) as err:
            self.close()
            raise VmmDiedError(f"Firecracker went away during {what}: {err}.") from err
        except BaseException:
            self.close()  # the answer that is on its way is no other request's
            raise
        if len(text) > ANSWER_MAX_BYTES:
            self.close()
            raise VmmError(f"Firecracker answered {what} with more than {ANSWER_MAX_BYTES} bytes.")
        if answer.length:
            self.close()
            raise VmmDiedError(f"Firecracker went away during {what}: its answer was cut off.")
        if answer.status >= HTTP_ERROR:
            raise RejectedError(f"Firecracker refused {what}.", request=what, reply=_fault(text))
        return text

    def stop_vcpus(self) -> None:
        """Pause; its block device writes as it is asked to, so nothing is left to be drained."""
        self.request("PATCH", "/vm", {"state": "Paused"})

    def resume_vcpus(self) -> None:
        self.request("PATCH", "/vm", {"state": "Resumed"})

    def vcpus_running(self) -> bool:
        text = self.request("GET", "/")
        try:
            return msgspec.json.decode(text, type=_Instance).state == "Running"
        except (msgspec.MsgspecError, UnicodeDecodeError) as err:
            raise VmmError(f"Firecracker said nonsense when it was asked for its state: {text[:100]!r}.") from err

    def create_snapshot(self, *, vmstate: str, memory: str, diff: bool) -> None:
        """Write device state and memory of a paused VM. ``diff``: only the pages dirtied since the last snapshot, in place, onto
        what ``memory`` holds already. Paths are relative to Firecracker's working directory.

        Raises:
            NoSpaceError, HostError: if the host had no room, or could not write.
            VmmError: for every other failure.
        """
        body = {"snapshot_type": "Diff" if diff else "Full", "snapshot_path": vmstate, "mem_file_path": memory}
        try:
            self.request("PUT", "/snapshot/create", body, timeout_s=CAPTURE_S)
        except RejectedError as err:
            found = _OS_ERROR.search(err.reply)
            if found is not None and int(found[1]) in WRITE_ERRORS:
                number = int(found[1])
                raise host_error(f"let Firecracker write {memory}", OSError(number, os.strerror(number))) from err
            raise

    def load_snapshot(self, *, vmstate: str, memory: str, tracking: str) -> None:
        """Load a snapshot, tracking what the guest dirties; the vCPUs stay stopped. ``tracking`` names the option."""
        body = {
            "snapshot_path": vmstate,
            "mem_backend": {"backend_type": "File", "backend_path": memory},
            tracking: True,
            "resume_vm": False,
        }
        self.request("PUT", "/snapshot/load", body, timeout_s=CAPTURE_S)


def _fault(text: bytes) -> str:
    try:
        return msgspec.json.decode(text, type=_Fault).fault_message[:FAULT_MAX_CHARACTERS]
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return text.decode(errors="replace")[:300]
