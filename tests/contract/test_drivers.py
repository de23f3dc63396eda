"""What every driver must do with a real VMM: boot, stop, save, load, tell an end from a death, and leave no process behind.

Only the contract of hypervisors/base.py is used, and the agent inside the guest; no store, no instance. Those that need KVM
run in the lab where the host has none.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from ramet import helpers, process
from ramet.errors import HostError, LaunchError, RejectedError, VmmDiedError, VmmError
from ramet.guests import image as images
from ramet.guests.client import AgentClient
from ramet.hypervisors.base import BootFiles, DirtySince, Driver, Hardware, LaunchSpec, SavesMemory
from ramet.hypervisors.firecracker import driver as firecracker
from ramet.hypervisors.firecracker.driver import FirecrackerDriver
from ramet.hypervisors.qemu import driver as qemu
from ramet.hypervisors.qemu.driver import QemuDriver
from ramet.linux import procfs
from ramet.model import MIB, Accelerator, Ping, VmmProcess
from ramet.paths import InstancePaths, SnapshotPaths
from ramet.snapshots.capture import capture, capture_by_vmm
from ramet.snapshots.dirty import find_dirty
from ramet.snapshots.scatter import Scatter
from ramet.store.derive import ANY_METHOD, derive
from tests import guest_images
from tests.capabilities import requires

MEMORY_MIB = 160
BOOT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A driver, and what it runs guests with."""

    driver: Driver
    accelerator: Accelerator


KINDS = [
    pytest.param(Kind(driver=QemuDriver(), accelerator=Accelerator.TCG), id="qemu", marks=requires("qemu")),
    pytest.param(Kind(driver=QemuDriver(), accelerator=Accelerator.KVM), id="qemu-kvm", marks=requires("qemu", "kvm")),
    pytest.param(
        Kind(driver=FirecrackerDriver(), accelerator=Accelerator.KVM),
        id="firecracker",
        marks=requires("firecracker", "kvm"),
    ),
]


class Machine:
    """Files and directories of one VMM, and the VMM itself while it lives."""

    def __init__(self, kind: Kind, directory: Path, *, disk: Path) -> None:
        self.driver = kind.driver
        self.paths = InstancePaths(dir=directory)
        for path in (self.paths.work, self.paths.run, self.paths.logs):
            path.mkdir(parents=True)
        derive(disk, self.paths.disk, allow=ANY_METHOD)
        self.vmm: VmmProcess | None = None
        self.spec = LaunchSpec(
            instance_id="0123456789ab",
            name="contract",
            hardware=Hardware(memory_mib=MEMORY_MIB, cpus=1, accelerator=kind.accelerator),
            memory=self.paths.memory,
            disk=self.paths.disk,
            work_dir=self.paths.work,
            run_dir=self.paths.run,
            vmm_log=self.paths.vmm_log,
            console_log=self.paths.console_log,
        )

    def boot(self, files: BootFiles) -> VmmProcess:
        with self.paths.memory.open("wb") as stream:
            stream.truncate(MEMORY_MIB * MIB)
        self.vmm = self.driver.boot(replace(self.spec, boot=files))
        return self.vmm

    def load(self, snapshot: SnapshotPaths) -> VmmProcess:
        derive(snapshot.memory, self.paths.memory, allow=ANY_METHOD)
        self.vmm = self.driver.load(replace(self.spec, vmstate=snapshot.vmstate))
        return self.vmm

    def capture(self, into: SnapshotPaths) -> None:
        """Of a VMM that has booted and was never captured."""
        assert self.vmm is not None
        with self.driver.connect(self.paths.run) as monitor:
            monitor.stop_vcpus()
            if isinstance(monitor, SavesMemory):
                capture_by_vmm(
                    monitor,
                    self.vmm,
                    live=self.paths,
                    base=None,
                    size_bytes=MEMORY_MIB * MIB,
                    diff=True,
                    into=into,
                    before_request=lambda: None,
                    scatter=Scatter(),
                )
            else:
                capture(
                    monitor,
                    self.vmm,
                    live=self.paths,
                    mapped_file=self.paths.memory,
                    into=into,
                    base_is_empty=True,
                    scatter=Scatter(),
                )
            monitor.resume_vcpus()

    def ping(self) -> Ping:
        with AgentClient.open(self.paths.run, deadline_s=BOOT_S) as agent:
            return agent.ping()

    def end(self) -> None:
        if self.vmm is not None:
            process.kill_and_wait(self.vmm)


@pytest.fixture(scope="module")
def boot_files() -> BootFiles:
    image, directory = images.resolve(guest_images.built(), "micro")
    return BootFiles(
        kernel=directory / image.kernel, initrd=directory / image.initrd, cmdline=image.cmdline, tick_hz=image.tick_hz
    )


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("disk") / "disk.raw"
    with path.open("wb") as stream:
        stream.truncate(32 * MIB)
    helpers.run([helpers.find_program("mkfs.ext4", package="e2fsprogs"), "-q", "-F", str(path)], timeout_s=60)
    return path


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    made: Kind = request.param
    return made


@pytest.fixture(scope="module")
def new_machine(kind: Kind, disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Machine]]:
    with ExitStack() as stack:

        def make() -> Machine:
            machine = Machine(kind, tmp_path_factory.mktemp("machine") / "instance", disk=disk)
            stack.callback(machine.end)
            return machine

        yield make


@pytest.fixture(scope="module")
def running(new_machine: Callable[[], Machine], boot_files: BootFiles) -> Machine:
    """Booted once for all the tests that leave it running."""
    machine = new_machine()
    machine.boot(boot_files)
    machine.ping()
    return machine


@pytest.fixture(scope="module")
def snapshot(running: Machine, tmp_path_factory: pytest.TempPathFactory) -> tuple[SnapshotPaths, Ping]:
    """A capture of the running machine, and what its agent said just before."""
    into = SnapshotPaths(dir=tmp_path_factory.mktemp("snapshot"))
    before = running.ping()
    running.capture(into)
    return into, before


def vmms_of(machine: Machine) -> list[VmmProcess]:
    return process.find_marked(machine.paths.run)


# -- a running VMM ------------------------------------------------------------------------------------------------


def test_a_booted_vmm_can_write_into_no_memory_file(running: Machine) -> None:
    """H06, H60: whatever its options mean in this version, the mappings that resulted are looked at."""
    assert running.vmm is not None
    assert [vmm.pid for vmm in vmms_of(running)] == [running.vmm.pid]
    shared = [one for one in procfs.mappings(running.vmm.pid) if one.ino and {"s", "w"} <= set(one.perms)]
    assert [one for one in shared if one.end - one.start >= MIB] == []
    if running.driver.dirty_since is DirtySince.MAPPED:
        assert find_dirty(running.vmm, running.paths.memory) != []
        assert running.paths.memory.stat().st_size == MEMORY_MIB * MIB
        assert running.paths.memory.stat().st_blocks == 0


@requires("landlock")
def test_a_vmm_is_confined(
    kind: Kind,
    new_machine: Callable[[], Machine],
    boot_files: BootFiles,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """H70: a script in its place is refused what is another instance's, and becomes a VMM that boots."""
    name, module = ("RAMET_QEMU", qemu) if isinstance(kind.driver, QemuDriver) else ("RAMET_FIRECRACKER", firecracker)
    machine = new_machine()
    victim = tmp_path / "victim"
    victim.write_bytes(b"another instance's")
    script = tmp_path / "programs/firecracker"
    script.parent.mkdir()
    script.write_text(
        "#!/bin/sh\n"
        f'[ "$1" = --version ] || {{ cat {victim} >&2; (: >>{victim}); : >{machine.paths.work}/own; }}\n'
        f'exec {module.program()} "$@"\n'
    )
    script.chmod(0o700)
    real = Path(module.program()).resolve()
    monkeypatch.setenv(name, str(script))
    monkeypatch.setenv("RAMET_VMM_READS", f"{script.parent}:{real}")
    machine.boot(boot_files)
    assert machine.ping().tick > 0
    assert machine.paths.vmm_log.read_text().count("Permission denied") == 2
    assert (machine.paths.work / "own").exists()
    assert victim.read_bytes() == b"another instance's"
    assert machine.vmm is not None
    assert "NoNewPrivs:\t1" in Path(f"/proc/{machine.vmm.pid}/status").read_text()
    machine.end()


def test_stop_and_resume_can_be_repeated_and_tell_the_truth(running: Machine) -> None:
    with running.driver.connect(running.paths.run) as monitor:
        for _ in range(2):
            monitor.stop_vcpus()
            assert not monitor.vcpus_running()
        for _ in range(2):
            monitor.resume_vcpus()
            assert monitor.vcpus_running()
    assert running.ping().tick > 0


def test_a_connection_ends_and_the_next_one_works(running: Machine) -> None:
    for _ in range(3):
        with running.driver.connect(running.paths.run) as monitor:
            assert monitor.vcpus_running()


def test_a_device_state_that_cannot_be_written_is_refused_and_the_vmm_runs_on(running: Machine) -> None:
    with running.driver.connect(running.paths.run) as monitor:
        monitor.stop_vcpus()
        if isinstance(monitor, SavesMemory):
            with pytest.raises(RejectedError):
                monitor.create_snapshot(vmstate="work/missing/vmstate", memory="work/memory", diff=False)
        else:
            with pytest.raises(RejectedError):
                monitor.save_device_state(running.paths.work / "missing" / "vmstate")
        monitor.resume_vcpus()
    running.ping()


def test_what_a_build_says_depends_on_the_hardware_alone(kind: Kind) -> None:
    """H61."""
    one = Hardware(memory_mib=MEMORY_MIB, cpus=1, accelerator=kind.accelerator)
    build = kind.driver.build(one)
    assert build == kind.driver.build(replace(one))
    assert build.accelerator is kind.accelerator
    assert kind.driver.build(replace(one, cpus=2)) != build


# -- loading ------------------------------------------------------------------------------------------------------


def test_a_loaded_vmm_is_stopped_and_then_is_the_guest_that_was_saved(
    new_machine: Callable[[], Machine], snapshot: tuple[SnapshotPaths, Ping]
) -> None:
    """H63: the nonce is born at boot and kept in RAM, the tick counts on. A reboot could give neither."""
    files, before = snapshot
    machine = new_machine()
    vmm = machine.load(files)
    with machine.driver.connect(machine.paths.run) as monitor:
        assert not monitor.vcpus_running()
        # KVM writes its clock's pages, and Firecracker the event that resets its vsock.
        touched = sum(run.length for run in find_dirty(vmm, machine.paths.memory))
        assert touched == 0 or machine.spec.hardware.accelerator is Accelerator.KVM
        assert touched <= 64 * 1024, "the guest's memory is written before its first instruction"
        monitor.resume_vcpus()
    after = machine.ping()
    assert after.nonce == before.nonce
    assert after.tick > before.tick
    assert machine.paths.memory.read_bytes() == files.memory.read_bytes()
    machine.end()


def test_two_vmms_run_from_one_snapshot_at_once(
    new_machine: Callable[[], Machine], snapshot: tuple[SnapshotPaths, Ping]
) -> None:
    files, before = snapshot
    pair = [new_machine(), new_machine()]
    for machine in pair:
        machine.load(files)
        with machine.driver.connect(machine.paths.run) as monitor:
            monitor.resume_vcpus()
    assert [machine.ping().nonce for machine in pair] == [before.nonce] * 2
    for machine in pair:
        machine.end()


@pytest.mark.parametrize("damage", ["empty", "cut", "garbage"])
def test_a_device_state_that_cannot_be_loaded_is_a_launch_error_and_no_process_is_left(
    new_machine: Callable[[], Machine], snapshot: tuple[SnapshotPaths, Ping], tmp_path: Path, damage: str
) -> None:
    files, _ = snapshot
    state = files.vmstate.read_bytes()
    broken = SnapshotPaths(dir=tmp_path)
    broken.memory.symlink_to(files.memory)
    broken.vmstate.write_bytes({"empty": b"", "cut": state[: len(state) // 2], "garbage": os.urandom(4096)}[damage])
    machine = new_machine()
    derive(files.memory, machine.paths.memory, allow=ANY_METHOD)
    with pytest.raises(LaunchError) as caught:
        machine.driver.load(replace(machine.spec, vmstate=broken.vmstate))
    assert caught.value.argv
    assert vmms_of(machine) == []


def test_load_needs_a_device_state(new_machine: Callable[[], Machine]) -> None:
    machine = new_machine()
    with pytest.raises(ValueError, match="vmstate"):
        machine.driver.load(machine.spec)
    assert vmms_of(machine) == []


# -- launches that fail, and ends ---------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["disk", "memory", "kernel"])
def test_a_launch_that_fails_says_why_and_leaves_no_process(
    new_machine: Callable[[], Machine], boot_files: BootFiles, snapshot: tuple[SnapshotPaths, Ping], missing: str
) -> None:
    machine = new_machine()
    gone = machine.paths.work / f"no-{missing}" / "file"
    with machine.paths.memory.open("wb") as stream:
        stream.truncate(MEMORY_MIB * MIB)
    launch, spec = {
        "disk": (machine.driver.boot, replace(machine.spec, boot=boot_files, disk=gone)),
        "kernel": (machine.driver.boot, replace(machine.spec, boot=replace(boot_files, kernel=gone))),
        "memory": (machine.driver.load, replace(machine.spec, vmstate=snapshot[0].vmstate, memory=gone)),
    }[missing]
    with pytest.raises((LaunchError, HostError)) as caught:
        launch(spec)
    said = caught.value.message
    if isinstance(caught.value, LaunchError):
        assert caught.value.argv
        said += caught.value.log_tail
    assert f"no-{missing}" in said
    assert vmms_of(machine) == []


def test_a_kernel_that_is_no_kernel_is_a_launch_error(
    new_machine: Callable[[], Machine], boot_files: BootFiles, tmp_path: Path
) -> None:
    machine = new_machine()
    with machine.paths.memory.open("wb") as stream:
        stream.truncate(MEMORY_MIB * MIB)
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"no ELF" * 1000)
    with pytest.raises(LaunchError):
        machine.driver.boot(replace(machine.spec, boot=replace(boot_files, kernel=kernel)))
    assert vmms_of(machine) == []


def test_nobody_listens(new_machine: Callable[[], Machine]) -> None:
    machine = new_machine()
    with pytest.raises(VmmDiedError):
        machine.driver.connect(machine.paths.run, deadline_s=1.0)


def test_a_vmm_that_dies_under_a_request_is_a_vmm_error(
    new_machine: Callable[[], Machine], snapshot: tuple[SnapshotPaths, Ping]
) -> None:
    machine = new_machine()
    vmm = machine.load(snapshot[0])
    with machine.driver.connect(machine.paths.run) as monitor:
        process.kill_and_wait(vmm)
        with pytest.raises(VmmError):
            monitor.vcpus_running()
    with pytest.raises(VmmDiedError):
        machine.driver.connect(machine.paths.run, deadline_s=1.0)


@pytest.mark.parametrize(
    ("how", "by_guest"), [("kill", False), ("ask", False), ("power off", True), ("reboot", True)], ids=str
)
def test_a_guest_that_ends_is_told_from_a_vmm_that_dies(
    new_machine: Callable[[], Machine], snapshot: tuple[SnapshotPaths, Ping], how: str, by_guest: bool
) -> None:
    """A VMM that was killed has lost memory that nobody meant to lose: that is no shutdown."""
    machine = new_machine()
    vmm = machine.load(snapshot[0])
    with machine.driver.connect(machine.paths.run) as monitor:
        monitor.resume_vcpus()
    machine.ping()
    if how == "kill":
        process.kill_and_wait(vmm)
    elif how == "ask":
        process.kill_and_wait(vmm, ask_s=20)
    else:
        with AgentClient.open(machine.paths.run) as agent:
            agent.shutdown(reboot=how == "reboot")
        assert process.wait_gone(vmm, 30), "the guest did not end"
    assert machine.driver.ended_by_guest(machine.paths.run, machine.paths.vmm_log) is by_guest
