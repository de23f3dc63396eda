"""``python -m bench.firecracker``: restores and diffs of Firecracker, against the raw mechanism, in one run.

It needs KVM; where there is none, the lab has it: ``python -m lab --disk xfs:4G -- python -m bench.firecracker``.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import raw, report
from bench.floor import clone_or_copy
from bench.measure import Sample, Watch, alternate, watch
from bench.place import describe_host
from bench.report import Report, Row, Table, Target, ratio
from ramet import Host
from ramet.guests.wire import Reply
from ramet.hypervisors.firecracker import driver
from ramet.linux.unixsock import connect_in
from ramet.model import MIB, Hypervisor
from ramet.paths import VSOCK_SOCKET

MEMORY_MIB = 256
FILL_MIB = 96
AGAIN_MIB = 32
RAMET = "Ramet: restore, exec true"
FLOOR = "floor: raw Firecracker, thaw, exec true"
FLOOR_PING = "floor, ended by the agent's first reply"
STEPS = ("derive", "start Firecracker", "load", "resume", "first reply", "thaw and command")
NAME = "bench"


@dataclass(slots=True, kw_only=True)
class Awake:
    """A guest that was woken by hand."""

    agent: raw.Agent
    clock: Watch
    steps: dict[str, float]


class Api(http.client.HTTPConnection):
    """Firecracker's REST interface, by hand."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__("localhost")
        while True:
            try:
                self.sock = connect_in(run_dir, "api.sock")
                return
            except (FileNotFoundError, ConnectionRefusedError):
                time.sleep(0.001)

    def ask(self, method: str, path: str, body: dict[str, object]) -> None:
        """Make one request.

        Raises:
            RuntimeError: if it was refused.
        """
        self.request(method, path, json.dumps(body))
        answer = self.getresponse()
        text = answer.read()
        if answer.status >= 400:
            raise RuntimeError(f"Firecracker refused {path}: {text!r}")


@contextmanager
def woken(snapshot: Path, scratch: Path) -> Iterator[Awake]:
    """The guest, running, for the block; then its VMM is killed and its files are gone."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(dir=scratch)))
        clock, steps = watch(), {}
        for name in ("work", "run"):
            (directory / name).mkdir()
        clone_or_copy(snapshot / "disk.raw", directory / "work" / "disk.raw")
        steps["derive"] = clock.lap()
        log = stack.enter_context((directory / "log").open("wb"))
        argv = [driver.program(), "--api-sock", "run/api.sock"]
        child = subprocess.Popen(argv, cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        stack.callback(child.wait)
        stack.callback(child.kill)
        api = Api(directory / "run")
        stack.callback(api.close)
        steps["start Firecracker"] = clock.lap()
        memory = {"backend_type": "File", "backend_path": str(snapshot / "memory")}
        load = {"snapshot_path": str(snapshot / "vmstate"), "mem_backend": memory, driver.tracking_option(): True}
        api.ask("PUT", "/snapshot/load", load)
        steps["load"] = clock.lap()
        api.ask("PATCH", "/vm", {"state": "Resumed"})
        steps["resume"] = clock.lap()
        yield Awake(agent=_agent(stack, directory / "run"), clock=clock, steps=steps)


def _agent(stack: ExitStack, run_dir: Path) -> raw.Agent:
    """A connection that is answered: the transport is reset by the load, and one that was made before it dies."""
    while True:
        sock = connect_in(run_dir, VSOCK_SOCKET)
        sock.settimeout(30)
        sock.sendall(b"CONNECT 5000\n")
        if _line(sock).startswith(b"OK "):
            agent = raw.Agent(sock)
            try:
                agent.ask(raw.PING, until=Reply.OK)
            except (OSError, RuntimeError):
                agent.close()
                continue
            stack.callback(agent.close)
            return agent
        sock.close()


def _line(sock: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n") and (more := sock.recv(1)):
        line += more
    return line


def answer(host: Host, scratch: Path) -> Sample:
    """Wake it by hand: until the agent's first reply, and until a command has ended.

    From a clone that nobody has read from yet, as Ramet's snapshot is: the page cache knows nothing of a clone's source.
    """
    snapshot = host.get(NAME).snapshot
    assert snapshot is not None
    with TemporaryDirectory(dir=scratch) as directory:
        for name in ("memory", "vmstate", "disk.raw"):
            clone_or_copy(Path(snapshot.dir) / name, Path(directory) / name)
        os.sync()
        with woken(Path(directory), scratch) as guest:
            steps = {**guest.steps, "first reply": guest.clock.lap()}
            first_reply = guest.clock.total()
            guest.agent.run(["true"], raw.THAW)
            steps["thaw and command"] = guest.clock.lap()
            found = {FLOOR: guest.clock.total(), FLOOR_PING: first_reply}
            return {**found, **{f"  {step}": value for step, value in steps.items()}}


def through_ramet(host: Host) -> Sample:
    """The same through Ramet; leaves it asleep."""
    clock = watch()
    host.restore(NAME)
    restored = clock.lap()
    host.exec(NAME, ["true"])
    found = {RAMET: clock.total(), "  restore": restored, "  exec true": clock.lap()}
    host.standby(NAME)
    return found


def measure(host: Host, scratch: Path, rounds: int) -> Table:
    """Wake a sleeping guest again and again."""
    found = alternate([lambda: through_ramet(host), lambda: answer(host, scratch)], rounds=rounds)
    rows = [
        Row(label=RAMET, values=found[RAMET], against=FLOOR),
        Row(label="  restore", values=found["  restore"]),
        Row(label="  exec true", values=found["  exec true"]),
        Row(label=FLOOR, values=found[FLOOR]),
        Row(label=FLOOR_PING, values=found[FLOOR_PING], against=FLOOR),
        *(Row(label=f"  floor: {step}", values=found[f"  {step}"]) for step in STEPS),
    ]
    return Table(
        title="restore to the first command answered",
        setting=f"Firecracker, {MEMORY_MIB} MiB guest, {FILL_MIB} MiB filled",
        rows=rows,
        targets=(
            Target(text="restore, against the floor with a command,", limit=1.25, measured=ratio(rows, RAMET, FLOOR)),
        ),
        notes=("Ramet's guest has a new identity and a durable record by then; the floor's has neither.",),
    )


def main() -> int:
    """Run; the table goes to stdout."""
    parser = argparse.ArgumentParser(prog="python -m bench.firecracker", description=__doc__)
    parser.add_argument(
        "--home", type=Path, default=os.environ.get("RAMET_HOME"), help="the store; default: $RAMET_HOME"
    )
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    host = Host(options.home)
    clock = watch()
    if not any("micro" in names for _, names in host.image_list()):
        host.image_build("micro")
    host.create(NAME, memory_mib=MEMORY_MIB, hypervisor=Hypervisor.FIRECRACKER)
    try:
        host.exec(NAME, ["ramet-fill", "/ram/fill", str(FILL_MIB * MIB), "1"])
        host.standby(NAME)
        with TemporaryDirectory(prefix="bench-", dir=host.home) as scratch:
            table = measure(host, Path(scratch), options.rounds)
        found = Report(host=describe_host(), absent={})
        found.tables.append(table)
        print(report.heading(found))
        print(report.text(table))
        found.seconds = clock.total()
        print(report.closing(found))
        return int(not all(target.met for target in found.targets()))
    finally:
        host.remove(NAME, force=True)


if __name__ == "__main__":
    sys.exit(main())
