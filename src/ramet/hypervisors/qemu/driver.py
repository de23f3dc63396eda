"""QEMU's driver: launch, load, and tell a guest's power-off from a VMM that died."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import re
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ramet import helpers, process
from ramet.errors import UnsupportedError, VmmError, host_errors
from ramet.hypervisors import confinement, kvm
from ramet.hypervisors.base import DirtySince, Hardware, LaunchSpec
from ramet.hypervisors.confinement import Confinement
from ramet.hypervisors.launch import inherited, last_run, launched
from ramet.hypervisors.qemu import argv as qemu_argv
from ramet.hypervisors.qemu.apic_timer import Measured, measured
from ramet.hypervisors.qemu.tsc import host_tsc_khz
from ramet.linux.unixsock import listen_in
from ramet.model import Accelerator, Hypervisor, VmmBuild, VmmProcess
from ramet.paths import AGENT_PORTS, CONSOLE_SOCKET, QMP_SOCKET
from ramet.phases import phase

if TYPE_CHECKING:
    from ramet.hypervisors.qemu.qmp import QmpMonitor

log = logging.getLogger("ramet.qemu")
PACKAGE = "qemu-system-x86"
ALIVE = "qemu.alive"
LOAD_DEADLINE_S = 30.0
BOOTS_MAX = 5
READ_ONLY_MEMORY_SINCE = (8, 2)
"""The ``rom`` property of memory-backend-file (argv.py)."""
_VERSION = re.compile(r"version ((\d+)\.(\d+)\S*)(?: \(([^)]*)\))?")


def program() -> str:
    """QEMU's path: ``$RAMET_QEMU``, else from PATH.

    Raises:
        UnsupportedError: if there is none.
    """
    return helpers.find_program("qemu-system-x86_64", package=PACKAGE, variable="RAMET_QEMU")


@functools.cache
def _version_of(path: str, mtime_ns: int, size: int) -> tuple[str, tuple[int, int]]:
    out = helpers.run([path, "--version"], timeout_s=20).stdout.decode(errors="replace")
    match = _VERSION.search(out)
    if match is None:
        raise UnsupportedError(
            f"{path} --version did not answer like QEMU: {out.strip()[:80]!r}.", capability="qemu", why="not QEMU"
        )
    whole, major, minor, packaged = match.groups()
    return packaged or whole, (int(major), int(minor))


def _version(path: str) -> tuple[str, tuple[int, int]]:
    """The packaged version and QEMU's own; asked once per process and per file."""
    stat = Path(path).stat()
    return _version_of(path, stat.st_mtime_ns, stat.st_size)


def version(path: str) -> str:
    """The packaged version, such as ``Debian 1:7.2+dfsg-7``."""
    return _version(path)[0]


def opens_memory_read_only(path: str) -> bool:
    """Whether this QEMU can run a guest from a file that it cannot write."""
    return _version(path)[1] >= READ_ONLY_MEMORY_SINCE


class QemuDriver:
    """The driver; it holds no state of any VM."""

    dirty_since = DirtySince.MAPPED

    @property
    def opens_memory_read_only(self) -> bool:
        return opens_memory_read_only(program())

    def build(self, hardware: Hardware) -> VmmBuild:
        return VmmBuild(
            hypervisor=Hypervisor.QEMU,
            version=version(program()),
            accelerator=hardware.accelerator,
            machine=qemu_argv.MACHINE,
            cpu_model=_cpu_model(hardware.accelerator),
            devices=qemu_argv.hardware_digest(hardware),
        )

    def boot(self, spec: LaunchSpec) -> VmmProcess:
        """A guest that has measured its timer wrong boots again, ``BOOTS_MAX`` times at most (apic_timer.py)."""
        for boots in itertools.count(1):
            with (
                self._launched(spec, extra_fds=()) as vmm,
                self.connect(spec.run_dir, deadline_s=LOAD_DEADLINE_S) as monitor,
            ):
                _require_one_writable_block(monitor, spec)
                monitor.resume_vcpus()
                if not _boots_again(monitor, spec, boots):
                    return vmm
                process.kill_and_wait(vmm)
        raise AssertionError("it boots again a few times")

    def load(self, spec: LaunchSpec) -> VmmProcess:
        if spec.vmstate is None:
            raise ValueError("load() needs a vmstate")
        with ExitStack() as stack:
            with host_errors(f"open the device state {spec.vmstate}"):
                state_fd = os.open(spec.vmstate, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, state_fd)
            with phase("start"):
                # It is given the device state open, and opens nothing of it itself.
                vmm = stack.enter_context(self._launched(replace(spec, vmstate=None), extra_fds=(state_fd,)))
                monitor = stack.enter_context(self.connect(spec.run_dir, deadline_s=LOAD_DEADLINE_S))
            with phase("load"):
                monitor.load_device_state(state_fd)
            return vmm

    def connect(self, run_dir: Path, *, deadline_s: float = 10.0) -> QmpMonitor:
        from ramet.hypervisors.qemu.qmp import QmpMonitor  # and asyncio: who only looks does not pay for them

        return QmpMonitor(run_dir, deadline_s=deadline_s)

    def log_of(self, vmm_log: Path) -> Path:
        return vmm_log

    def ended_by_guest(self, run_dir: Path, vmm_log: Path) -> bool:
        """QEMU unlinks the socket that it has made when it exits in order; a signal is named in its log."""
        if (run_dir / ALIVE).exists():
            return False
        return "terminating on signal" not in last_run(vmm_log)

    def _launched(self, spec: LaunchSpec, *, extra_fds: tuple[int, ...]) -> AbstractContextManager[VmmProcess]:
        path, tsc_khz = program(), _tsc_khz(spec)
        confined = confinement.of(
            spec,
            path,
            kvm=spec.hardware.accelerator is Accelerator.KVM,
            memory_is_written=not opens_memory_read_only(path),
        )
        return launched(
            "QEMU",
            confined,
            lambda: _spawn(path, confined, extra_fds, tsc_khz),
            last_words=lambda: last_run(spec.vmm_log),
            hint=f"The whole log is {spec.vmm_log}; its first line is the command.{confinement.hint()}",
        )


def _spawn(
    path: str, confined: Confinement, extra_fds: tuple[int, ...], tsc_khz: int | None
) -> tuple[list[str], VmmProcess]:
    """Make the sockets and start QEMU with them; returns its command line too."""
    spec = confined.spec
    directory = spec.work_dir.parent
    fds = [*extra_fds]

    def told(file: Path) -> Path:
        """As QEMU is told of it."""
        if directory in file.parents:
            return file.relative_to(directory)
        fd, by_descriptor = inherited(stack, file)
        fds.append(fd)
        return by_descriptor

    with ExitStack() as stack:
        with host_errors(f"make the sockets in {spec.run_dir}"):
            (spec.run_dir / ALIVE).unlink(missing_ok=True)
            names = (QMP_SOCKET, CONSOLE_SOCKET, *(f"agent{port}.sock" for port in range(AGENT_PORTS)))
            sockets = [stack.enter_context(listen_in(spec.run_dir, name)).fileno() for name in names]
        with host_errors(f"open the files of {spec.name!r}"):
            boot = spec.boot and replace(spec.boot, kernel=told(spec.boot.kernel), initrd=told(spec.boot.initrd))
            memory = told(spec.memory)
        command = qemu_argv.build_argv(
            path,
            name=spec.name,
            hardware=spec.hardware,
            memory=memory,
            disk=told(spec.disk),
            alive=told(spec.run_dir / ALIVE),
            console_log=told(spec.console_log),
            sockets=qemu_argv.Sockets(qmp=sockets[0], console=sockets[1], agents=tuple(sockets[2:])),
            boot=boot,
            read_only_memory=not confined.memory_is_written,
            tsc_khz=tsc_khz,
        )
        confined.hand_over()
        vmm = process.spawn(
            command,
            log_path=spec.vmm_log,
            pass_fds=[*sockets, *fds],
            cwd=directory,
            mark=spec.run_dir,
            limits=confined.limits,
            starter=confined.start,
        )
        return command, vmm


def _cpu_model(accelerator: Accelerator) -> str:
    """Under KVM the guest has the host's CPU, whose name alone says which that is."""
    return kvm.host_cpu() if accelerator is Accelerator.KVM else qemu_argv.CPU_MODEL[accelerator]


def _tsc_khz(spec: LaunchSpec) -> int | None:
    """Only a guest that boots under TCG needs it: KVM's clock tells it by itself."""
    return host_tsc_khz() if spec.boot and spec.hardware.accelerator is Accelerator.TCG else None


def _boots_again(monitor: QmpMonitor, spec: LaunchSpec, boots: int) -> bool:
    """Whether a guest that boots has to do so again, after ``boots`` boots.

    Raises:
        VmmError: if it has measured its timer so often so low that it would not come up.
    """
    tick_hz = spec.boot.tick_hz if spec.boot else None
    if spec.hardware.accelerator is not Accelerator.TCG or tick_hz is None:
        return False
    found = measured(lambda: monitor.local_apic(0), tick_hz, LOAD_DEADLINE_S)
    if found is Measured.UNKNOWN:
        log.info("%s: not seen to have measured its timer", spec.name)
    if found in (Measured.UNKNOWN, Measured.WELL):
        return False
    log.info("%s: has measured its timer's frequency %s, boot %d of %d", spec.name, found.value, boots, BOOTS_MAX)
    if boots < BOOTS_MAX:
        return True
    if found is Measured.TOO_LOW:
        raise VmmError(
            f"In each of {BOOTS_MAX} boots the guest measured its timer wrong, since this host did not run it for a while.",
            hint="Try again when the host has less to do, or give Ramet more of its CPUs.",
        )
    log.warning("%s: its sleeps take too long, since this host did not run it for a while as it booted", spec.name)
    return False


def _require_one_writable_block(monitor: QmpMonitor, spec: LaunchSpec) -> None:
    """Refuse a machine with writable memory beside ``ram0``: a capture of the device state would lose it.

    ``pc.bios`` and ``/rom@…`` are read-only for the guest, and the same command line builds them again.
    """
    blocks = [line.split()[0] for line in monitor.ram_blocks().splitlines()[1:] if line.strip()]
    unknown = sorted(name for name in blocks if name not in ("ram0", "pc.bios") and not name.startswith("/rom@"))
    if unknown:
        raise UnsupportedError(
            f"QEMU's {qemu_argv.MACHINE} machine has memory that a snapshot of {spec.name!r} would lose: "
            f"{', '.join(unknown)}.",
            capability="qemu-ram-blocks",
            why=f"x-query-ramblock lists {', '.join(sorted(blocks))}",
            hint="This version of QEMU is not supported yet; please report it with the output of `ramet doctor`.",
        )
