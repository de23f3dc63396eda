"""The raw mechanism, as little code as it takes: no store, no locks, no records, no checks, no identity, nothing durable.

Derive the disk, start QEMU with Ramet's command line, load the device state, continue, and ask the agent. What Ramet takes
beyond this is Ramet's.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import raw
from bench.measure import Watch, watch
from ramet.guests.wire import Reply
from ramet.hypervisors.base import Hardware
from ramet.hypervisors.qemu import argv as qemu_argv
from ramet.hypervisors.qemu import driver
from ramet.linux.reflink import FICLONE
from ramet.linux.unixsock import connect_in, listen_in
from ramet.paths import AGENT_PORTS

QMP, CONSOLE = "qmp.sock", "console.sock"
AGENTS = tuple(f"agent{port}.sock" for port in range(AGENT_PORTS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Asleep:
    """A guest at rest: what it takes to wake it by hand."""

    hardware: Hardware
    disk: Path
    state: Path
    """Device state alone, or a whole migration stream if there is no ``memory``."""
    memory: Path | None
    own_memory: bool = False
    """Map a clone (or copy) of ``memory``, as Ramet does where it keeps the VMM off the snapshot's own inode."""


@dataclass(slots=True, kw_only=True)
class Awake:
    """A guest that was woken: its agent, the clock that runs since the request, and how long each step took."""

    agent: raw.Agent
    pid: int
    clock: Watch
    steps: dict[str, float]


def answer_ping(asleep: Asleep, scratch: Path) -> dict[str, float]:
    """Wake it and get one reply from the agent; seconds in total and by step."""
    with woken(asleep, scratch) as guest:
        guest.agent.ask(raw.PING, until=Reply.OK)
        return {**guest.steps, "reply": guest.clock.lap(), "total": guest.clock.total()}


def answer_command(asleep: Asleep, scratch: Path, *, then: Sequence[str] = ()) -> dict[str, float]:
    """Wake it, thaw it and run ``true``; seconds in total, by step, and until the command ``then`` has ended, if given."""
    with woken(asleep, scratch) as guest:
        guest.agent.run(["true"], raw.THAW)
        found = {**guest.steps, "thaw and command": guest.clock.lap(), "total": guest.clock.total()}
        if then:
            guest.agent.run(then)
            found["then"] = guest.clock.total()
        return found


@contextmanager
def woken(asleep: Asleep, scratch: Path) -> Iterator[Awake]:
    """The guest, running, for the block; then its VMM is killed and its files are gone."""
    with ExitStack() as stack:
        work = Path(stack.enter_context(TemporaryDirectory(dir=scratch)))
        clock, steps = watch(), {}
        clone_or_copy(asleep.disk, work / "disk.raw")
        if asleep.memory and asleep.own_memory:
            clone_or_copy(asleep.memory, work / "memory")
        steps["derive"] = clock.lap()
        state_fd = os.open(asleep.state, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, state_fd)
        pid = _start(stack, asleep, work, state_fd)
        monitor = raw.Qmp(connect_in(work, QMP))
        stack.callback(monitor.close)
        steps["start QEMU"] = clock.lap()
        monitor.report_migrations()
        monitor.command("migrate-incoming", uri=f"fd:{state_fd}")
        monitor.wait_migration()
        steps["load"] = clock.lap()
        monitor.command("cont")
        agent = raw.Agent(connect_in(work, AGENTS[0]))
        stack.callback(agent.close)
        yield Awake(agent=agent, pid=pid, clock=clock, steps=steps)


def _start(stack: ExitStack, asleep: Asleep, work: Path, state_fd: int) -> int:
    with ExitStack() as sockets:
        fds = [sockets.enter_context(listen_in(work, name)).fileno() for name in (QMP, CONSOLE, *AGENTS)]
        child = subprocess.Popen(
            _argv(asleep, work, fds),
            stdin=subprocess.DEVNULL,
            pass_fds=[*fds, state_fd],
            cwd=work,
            start_new_session=True,
        )
    stack.callback(child.wait)
    stack.callback(child.kill)
    return child.pid


def _argv(asleep: Asleep, work: Path, fds: Sequence[int]) -> list[str]:
    """Ramet's own command line; without ``memory``, plain anonymous RAM instead of a mapped file."""
    mapped = work / "memory" if asleep.own_memory else asleep.memory
    argv = qemu_argv.build_argv(
        driver.program(),
        name="bench-floor",
        hardware=asleep.hardware,
        memory=mapped or Path("-"),
        disk=work / "disk.raw",
        alive=Path("qemu.alive"),
        console_log=work / "console.log",
        sockets=qemu_argv.Sockets(qmp=fds[0], console=fds[1], agents=tuple(fds[2:])),
        boot=None,
    )
    if asleep.memory is not None:
        return argv
    plain = f"memory-backend-ram,id=ram0,size={asleep.hardware.memory_mib}M,merge=off,dump=off"
    return [plain if item.startswith("memory-backend-file,") else item for item in argv]


def clone_or_copy(src: Path, dst: Path) -> None:
    """A reflink where there are any, else the data without the holes."""
    with src.open("rb") as source, dst.open("wb") as target:
        try:
            fcntl.ioctl(target, FICLONE, source.fileno())
        except OSError:
            os.ftruncate(target.fileno(), os.fstat(source.fileno()).st_size)
            _copy_data(source.fileno(), target.fileno())


def _copy_data(src: int, dst: int) -> None:
    position, size = 0, os.fstat(src).st_size
    with suppress(OSError):  # ENXIO: no data after position
        while position < size:
            position = os.lseek(src, position, os.SEEK_DATA)
            end = os.lseek(src, position, os.SEEK_HOLE)
            while position < end:
                position += os.copy_file_range(src, dst, end - position, offset_src=position, offset_dst=position)
