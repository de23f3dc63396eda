"""The drivers of the VMs that are played: one whose memory is read from outside, and one that writes its memory itself."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self

from ramet.errors import RejectedError, VmmDiedError
from ramet.hypervisors.base import DirtySince, Driver, Hardware, LaunchSpec
from ramet.hypervisors.launch import last_run
from ramet.model import PAGE_BYTES, Accelerator, Hypervisor, VmmBuild, VmmProcess
from tests.model.agents import Agents
from tests.model.machine import POWERED_OFF, Machine


class PlayedVmms:
    """Every machine that was started in it, by run directory; it gives the drivers that start them."""

    def __init__(self, program: Path, *, mapped_read_only: bool) -> None:
        self._program = program
        self._agents = Agents()
        self._machines: dict[Path, Machine] = {}
        self._drivers: dict[Hypervisor, Driver] = {
            Hypervisor.QEMU: MappedDriver(self, read_only=mapped_read_only),
            Hypervisor.FIRECRACKER: LastCaptureDriver(self),
        }

    def driver(self, hypervisor: Hypervisor) -> Driver:
        return self._drivers[hypervisor]

    def machine(self, run_dir: Path) -> Machine:
        """The live machine of a run directory.

        Raises:
            VmmDiedError: if there is none.
        """
        if self._agents.error is not None:
            raise AssertionError("the agents' thread has failed") from self._agents.error
        machine = self._machines.get(run_dir)
        if machine is None or not machine.is_alive():
            raise VmmDiedError(f"No VMM lives in {run_dir}.")
        return machine

    def refuse_next_identity(self) -> None:
        """The next guest that is given one will not take it."""
        self._agents.refuse_next_identity = True

    def alive(self) -> list[Path]:
        """Where a VMM lives."""
        return [run_dir for run_dir, machine in self._machines.items() if machine.is_alive()]

    def start(self, spec: LaunchSpec, *, memory: Path | None, opens_for_writing: bool = False) -> Machine:
        """A new machine, with its vCPUs stopped."""
        before = self._machines.pop(spec.run_dir, None)
        if before is not None:
            assert not before.is_alive(), f"a second VMM of {spec.name} was started: both write its disk"
            self._end(before)
        if spec.memory_is_sealed:
            memory = Path(f"/proc/{os.getpid()}/fd/{spec.memory.name}")  # the played VMM does not inherit it
        machine = Machine(self._program, spec, memory=memory, opens_for_writing=opens_for_writing)
        self._machines[spec.run_dir] = machine
        self._agents.listen(machine)
        return machine

    def close(self) -> None:
        for machine in self._machines.values():
            self._end(machine)
        self._machines.clear()
        self._agents.close()

    def _end(self, machine: Machine) -> None:
        self._agents.hang_up(machine)
        machine.close()


class PlayedMonitor:
    """What both have."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    def stop_vcpus(self) -> None:
        self._machine.vcpus_run = False

    def resume_vcpus(self) -> None:
        self._machine.vcpus_run = True

    def vcpus_running(self) -> bool:
        return self._machine.vcpus_run


class DeviceStateMonitor(PlayedMonitor):
    """Of a VMM whose memory is read from outside."""

    def save_device_state(self, path: Path) -> None:
        state = self._machine.device_state()
        assert path.parent == self._machine.spec.work_dir
        path.write_bytes(state)
        if self._machine.loses_next_capture:
            self._machine.loses_next_capture = False
            raise RejectedError("Told to fail.", request="save", reply="no")


class MemoryMonitor(PlayedMonitor):
    """Of a VMM that writes its memory itself, and forgets then which pages were dirty, whatever becomes of the file."""

    def create_snapshot(self, *, vmstate: str, memory: str, diff: bool) -> None:
        machine = self._machine
        directory = machine.spec.work_dir.parent
        for path in (directory / vmstate, directory / memory):
            assert path.parent == machine.spec.work_dir
        (directory / vmstate).write_bytes(machine.device_state())
        pages = sorted(machine.dirty) if diff else range(machine.size_bytes // PAGE_BYTES)
        fd = os.open(directory / memory, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | (0 if diff else os.O_TRUNC), 0o600)
        try:
            if os.fstat(fd).st_size != machine.size_bytes:
                os.ftruncate(fd, 0)
                os.ftruncate(fd, machine.size_bytes)
            for page in pages:
                os.pwrite(fd, machine.read_memory(page * PAGE_BYTES, PAGE_BYTES), page * PAGE_BYTES)
        finally:
            os.close(fd)
        machine.dirty.clear()
        if machine.loses_next_capture:
            machine.loses_next_capture = False
            raise RejectedError("Told to fail.", request="snapshot", reply="no")


class PlayedDriver:
    """What both have. ``boot`` gives memory full of zeros; a device state holds the register."""

    hypervisor: Hypervisor

    def __init__(self, room: PlayedVmms) -> None:
        self._room = room

    def build(self, hardware: Hardware) -> VmmBuild:
        return VmmBuild(
            hypervisor=self.hypervisor,
            version="1",
            accelerator=Accelerator.TCG,
            machine="played",
            cpu_model="none",
            devices="none",
        )

    def log_of(self, vmm_log: Path) -> Path:
        return vmm_log

    def ended_by_guest(self, run_dir: Path, vmm_log: Path) -> bool:
        return POWERED_OFF in last_run(vmm_log)


class MappedDriver(PlayedDriver):
    """Dirty pages are private pages of its mapping, as QEMU's; opens the memory for writing like an older one if told so."""

    hypervisor = Hypervisor.QEMU
    dirty_since = DirtySince.MAPPED

    def __init__(self, room: PlayedVmms, *, read_only: bool) -> None:
        super().__init__(room)
        self.opens_memory_read_only = read_only

    def boot(self, spec: LaunchSpec) -> VmmProcess:
        return self._start(spec, runs=True).vmm

    def load(self, spec: LaunchSpec) -> VmmProcess:
        assert spec.vmstate is not None
        machine = self._start(spec, runs=False)
        machine.load_device_state(spec.vmstate)
        return machine.vmm

    def connect(self, run_dir: Path, *, deadline_s: float = 10.0) -> DeviceStateMonitor:
        return DeviceStateMonitor(self._room.machine(run_dir))

    def _start(self, spec: LaunchSpec, *, runs: bool) -> Machine:
        machine = self._room.start(spec, memory=spec.memory, opens_for_writing=not self.opens_memory_read_only)
        machine.vcpus_run = runs
        return machine


class LastCaptureDriver(PlayedDriver):
    """Writes its memory itself, as Firecracker does; boots without a memory file."""

    hypervisor = Hypervisor.FIRECRACKER
    dirty_since = DirtySince.LAST_CAPTURE
    opens_memory_read_only = True

    def boot(self, spec: LaunchSpec) -> VmmProcess:
        machine = self._room.start(spec, memory=None)
        machine.vcpus_run = True
        return machine.vmm

    def load(self, spec: LaunchSpec) -> VmmProcess:
        assert spec.vmstate is not None
        machine = self._room.start(spec, memory=spec.memory)
        machine.load_device_state(spec.vmstate)
        return machine.vmm

    def connect(self, run_dir: Path, *, deadline_s: float = 10.0) -> MemoryMonitor:
        return MemoryMonitor(self._room.machine(run_dir))
