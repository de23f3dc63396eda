"""QEMU by hand."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ramet.bench import hand, raw
from ramet.bench.hand import Asleep, Awake
from ramet.bench.samples import watch
from ramet.errors import host_errors
from ramet.hypervisors.qemu import argv as qemu_argv
from ramet.hypervisors.qemu import driver
from ramet.linux.unixsock import connect_in, listen_in
from ramet.paths import AGENT_PORTS

QMP, CONSOLE = "qmp.sock", "console.sock"
AGENTS = tuple(f"agent{port}.sock" for port in range(AGENT_PORTS))


@contextmanager
def woken(asleep: Asleep, scratch: Path) -> Iterator[Awake]:
    """The guest, running, for the block; then its VMM is killed and its files are gone.

    Raises:
        VmmError: if it does not come up.
        HostError: if there is no room for its files.
    """
    with ExitStack() as stack:
        work = stack.enter_context(hand.directory_in(scratch))
        clock, steps = watch(), {}
        hand.clone_or_copy(asleep.disk, work / "disk.raw")
        if asleep.memory and asleep.own_memory:
            hand.clone_or_copy(asleep.memory, work / "memory")
        steps["derive"] = clock.lap()
        with host_errors(f"open {asleep.state}"):
            state_fd = os.open(asleep.state, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, state_fd)
        pid = _start(stack, asleep, work, state_fd)
        with raw.vmm_errors("QEMU"):
            monitor = stack.enter_context(raw.Qmp(connect_in(work, QMP)))
        steps["start"] = clock.lap()
        monitor.report_migrations()
        monitor.command("migrate-incoming", uri=f"fd:{state_fd}")
        monitor.wait_migration()
        steps["load"] = clock.lap()
        monitor.command("cont")
        with raw.vmm_errors("QEMU"):
            agent = stack.enter_context(raw.Agent(connect_in(work, AGENTS[0])))
        yield Awake(agent=agent, pid=pid, clock=clock, steps=steps)


def _start(stack: ExitStack, asleep: Asleep, work: Path, state_fd: int) -> int:
    with ExitStack() as sockets, host_errors("make the sockets of a VMM"):
        fds = [sockets.enter_context(listen_in(work, name)).fileno() for name in (QMP, CONSOLE, *AGENTS)]
        return hand.start(stack, _argv(asleep, work, fds), work, pass_fds=[*fds, state_fd], log=work / "vmm.log")


def _argv(asleep: Asleep, work: Path, fds: Sequence[int]) -> list[str]:
    """Ramet's own command line; without ``memory``, plain anonymous RAM instead of a mapped file."""
    mapped = work / "memory" if asleep.own_memory else asleep.memory
    program = driver.program()
    argv = qemu_argv.build_argv(
        program,
        name="bench-floor",
        hardware=asleep.hardware,
        memory=mapped or Path("-"),
        disk=work / "disk.raw",
        alive=Path("qemu.alive"),
        console_log=work / "console.log",
        sockets=qemu_argv.Sockets(qmp=fds[0], console=fds[1], agents=tuple(fds[2:])),
        boot=None,
        read_only_memory=asleep.memory is not None and driver.opens_memory_read_only(program),
    )
    if asleep.memory is not None:
        return argv
    plain = f"memory-backend-ram,id=ram0,size={asleep.hardware.memory_mib}M,merge=off,dump=off"
    return [plain if item.startswith("memory-backend-file,") else item for item in argv]
