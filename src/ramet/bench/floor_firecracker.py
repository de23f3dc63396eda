"""Firecracker by hand."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ramet import process
from ramet.bench import hand, raw
from ramet.bench.hand import Asleep, Awake
from ramet.bench.samples import watch
from ramet.errors import GuestError, RejectedError, VmmDiedError
from ramet.guests.wire import Reply
from ramet.hypervisors.firecracker import driver
from ramet.linux.unixsock import connect_in
from ramet.paths import API_SOCKET, VSOCK_SOCKET

PORT_LINE = b"CONNECT 5000\n"
START_S = 30.0
POLL_S = 0.001
"""It is timed: nothing is to be waited for longer than it takes."""


class Api(http.client.HTTPConnection):
    """Firecracker's REST interface, by hand."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__("localhost")
        try:
            self.sock = process.wait_until(lambda: _connected(run_dir), START_S, what="the socket", pause_max_s=POLL_S)
        except TimeoutError as err:
            raise VmmDiedError(f"Firecracker, started by hand, opened no socket within {START_S:g} s.") from err

    def ask(self, method: str, path: str, body: dict[str, object]) -> None:
        """Make one request.

        Raises:
            VmmError: if it was refused, or Firecracker went away.
        """
        asked = json.dumps(body)
        try:
            self.request(method, path, asked)
            answer = self.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as err:
            raise VmmDiedError(f"Firecracker, started by hand, does not answer: {err}") from err
        if answer.status >= 400:
            raise RejectedError(f"Firecracker refused {path}.", request=asked, reply=text.decode(errors="replace"))


def _connected(run_dir: Path) -> socket.socket | None:
    try:
        return connect_in(run_dir, API_SOCKET)
    except (FileNotFoundError, ConnectionRefusedError):
        return None


@contextmanager
def woken(asleep: Asleep, scratch: Path) -> Iterator[Awake]:
    """The guest, running, for the block; then its VMM is killed and its files are gone.

    Raises:
        VmmError: if it does not come up.
        HostError: if there is no room for its files.
    """
    assert asleep.memory is not None, "Firecracker loads no streams"
    with ExitStack() as stack:
        directory = stack.enter_context(hand.directory_in(scratch))
        clock, steps = watch(), {}
        for name in ("work", "run"):
            (directory / name).mkdir()
        hand.clone_or_copy(asleep.disk, directory / "work" / "disk.raw")
        memory = asleep.memory
        if asleep.own_memory:
            memory = directory / "work" / "memory"
            hand.clone_or_copy(asleep.memory, memory)
        steps["derive"] = clock.lap()
        argv = [driver.program(), "--api-sock", f"run/{API_SOCKET}"]
        pid = hand.start(stack, argv, directory, log=directory / "vmm.log")
        api = Api(directory / "run")
        stack.callback(api.close)
        steps["start"] = clock.lap()
        backend = {"backend_type": "File", "backend_path": str(memory)}
        load = {"snapshot_path": str(asleep.state), "mem_backend": backend, driver.tracking_option(): True}
        api.ask("PUT", "/snapshot/load", load)
        api.ask("PATCH", "/vm", {"state": "Resumed"})
        steps["load"] = clock.lap()
        yield Awake(agent=_agent(stack, directory / "run"), pid=pid, clock=clock, steps=steps)


def _agent(stack: ExitStack, run_dir: Path) -> raw.Agent:
    """A connection that is answered: the transport is reset by the load, and one that was made before it dies."""
    try:
        agent = process.wait_until(lambda: _answering(run_dir), raw.ANSWER_S, what="the agent", pause_max_s=POLL_S)
    except TimeoutError as err:
        raise VmmDiedError("The agent of a guest that was woken by hand does not answer.") from err
    return stack.enter_context(agent)


def _answering(run_dir: Path) -> raw.Agent | None:
    with raw.vmm_errors("Firecracker"):
        sock = connect_in(run_dir, VSOCK_SOCKET)
        sock.settimeout(START_S)
        sock.sendall(PORT_LINE)
        if not _line(sock).startswith(b"OK "):
            sock.close()
            return None
    agent = raw.Agent(sock)
    try:
        agent.ask(raw.PING, until=Reply.OK)
    except (VmmDiedError, GuestError):
        agent.close()
        return None
    return agent


def _line(sock: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n") and (more := sock.recv(1)):
        line += more
    return line
