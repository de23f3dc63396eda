"""What every driver must do with a real VMM: boot, stop, save, load, tell an end from a death, and leave no process behind.

Only the contract of hypervisors/base.py is used, and the agent inside the guest; no store, no instance.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from ramet import Host, process
from ramet.errors import LaunchError, RejectedError, VmmDiedError, VmmError
from ramet.guests import image as images
from ramet.guests.client import AgentClient
from ramet.hypervisors.base import BootFiles, Driver, Hardware, LaunchSpec
from ramet.hypervisors.qemu.driver import QemuDriver
from ramet.model import MIB, Accelerator, Ping, VmmProcess
from ramet.paths import InstancePaths, SnapshotPaths
from ramet.snapshots.capture import capture, find_dirty
from ramet.store.derive import ANY_METHOD, derive
from tests.conftest import requires

MEMORY_MIB = 160
BOOT_S = 60.0

pytestmark = requires("qemu")


class Machine:
    """Files and directories of one VMM, and the VMM itself while it lives."""

    def __init__(self, driver: Driver, directory: Path, *, disk: Path) -> None:
        self.driver = driver
        self.paths = InstancePaths(dir=directory)
        for path in (self.paths.work, self.paths.run, self.paths.logs):
            path.mkdir(parents=True)
        derive(disk, self.paths.disk, allow=ANY_METHOD)
        self.vmm: VmmProcess | None = None
        self.spec = LaunchSpec(
            name="contract",
            hardware=Hardware(memory_mib=MEMORY_MIB, cpus=1, accelerator=Accelerator.TCG),
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

    def ping(self) -> Ping:
        with AgentClient.open(self.paths.run, deadline_s=BOOT_S) as agent:
            return agent.ping()

    def end(self) -> None:
        if self.vmm is not None:
            process.kill_and_wait(self.vmm)


@pytest.fixture(scope="module")
def boot_files(tmp_path_factory: pytest.TempPathFactory) -> BootFiles:
    home = tmp_path_factory.mktemp("store") / "home"
    built = Host(home).image_build("micro")
    directory = home / "images" / built.digest
    image, _ = images.resolve(home / "images", built.digest)
    return BootFiles(kernel=directory / image.kernel, initrd=directory / image.initrd, cmdline=image.cmdline)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("disk") / "disk.raw"
    with path.open("wb") as stream:
        stream.truncate(32 * MIB)
    process.run([process.find_program("mkfs.ext4", package="e2fsprogs"), "-q", "-F", str(path)], timeout_s=60)
    return path


@pytest.fixture(scope="module", params=[QemuDriver], ids=lambda driver: driver.__name__)
def driver(request: pytest.FixtureRequest) -> Driver:
    made: Driver = request.param()
    return made


@pytest.fixture(scope="module")
def new_machine(
    driver: Driver, disk: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], Machine]]:
    with ExitStack() as stack:

        def make() -> Machine:
            machine = Machine(driver, tmp_path_factory.mktemp("machine") / "instance", disk=disk)
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
    assert running.vmm is not None
    with running.driver.connect(running.paths.run) as monitor:
        monitor.stop_vcpus()
        capture(
            monitor, running.vmm, live=running.paths, mapped_file=running.paths.memory, into=into, base_is_empty=True
        )
        monitor.resume_vcpus()
    return into, before


def processes_of(machine: Machine) -> list[int]:
    """Processes whose command line or descriptors lead into the machine's directory."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.fsencode(str(machine.paths.dir)) in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


# -- a running VMM ------------------------------------------------------------------------------------------------


def test_a_booted_vmm_runs_and_maps_the_whole_memory_file_privately(running: Machine) -> None:
    """H06, H60: whatever its options mean in this version, the mapping that resulted is looked at."""
    assert running.vmm is not None
    assert process.is_alive(running.vmm)
    assert find_dirty(running.vmm, running.paths.memory) != []
    assert running.paths.memory.stat().st_size == MEMORY_MIB * MIB


def test_the_guest_never_writes_into_the_memory_file(running: Machine) -> None:
    running.ping()
    assert running.paths.memory.stat().st_blocks == 0


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
        with pytest.raises(RejectedError):
            monitor.save_device_state(running.paths.work / "missing" / "vmstate")
        monitor.resume_vcpus()
    running.ping()


def test_what_a_build_says_depends_on_the_hardware_alone(driver: Driver) -> None:
    """H61."""
    one = Hardware(memory_mib=MEMORY_MIB, cpus=1, accelerator=Accelerator.TCG)
    assert driver.build(one) == driver.build(replace(one))
    for other in (replace(one, cpus=2), replace(one, accelerator=Accelerator.KVM)):
        assert driver.build(other) != driver.build(one)


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
        assert find_dirty(vmm, machine.paths.memory) == [], "nothing has been written before the first instruction"
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
    assert processes_of(machine) == []


def test_load_needs_a_device_state(new_machine: Callable[[], Machine]) -> None:
    machine = new_machine()
    with pytest.raises(ValueError, match="vmstate"):
        machine.driver.load(machine.spec)
    assert processes_of(machine) == []


# -- launches that fail, and ends ---------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["disk", "memory", "kernel"])
def test_a_launch_that_fails_says_why_and_leaves_no_process(
    new_machine: Callable[[], Machine], boot_files: BootFiles, tmp_path: Path, missing: str
) -> None:
    machine = new_machine()
    gone = tmp_path / f"no-{missing}" / "file"
    with machine.paths.memory.open("wb") as stream:
        stream.truncate(MEMORY_MIB * MIB)
    specs = {
        "disk": replace(machine.spec, boot=boot_files, disk=gone),
        "memory": replace(machine.spec, boot=boot_files, memory=gone),
        "kernel": replace(machine.spec, boot=replace(boot_files, kernel=gone)),
    }
    with pytest.raises(LaunchError) as caught:
        machine.driver.boot(specs[missing])
    assert f"no-{missing}" in caught.value.log_tail
    assert caught.value.argv
    assert processes_of(machine) == []


def test_nobody_listens(driver: Driver, new_machine: Callable[[], Machine]) -> None:
    with pytest.raises(VmmDiedError):
        driver.connect(new_machine().paths.run, deadline_s=1.0)


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


def test_quit_ends_it(new_machine: Callable[[], Machine], snapshot: tuple[SnapshotPaths, Ping]) -> None:
    machine = new_machine()
    vmm = machine.load(snapshot[0])
    with machine.driver.connect(machine.paths.run) as monitor:
        monitor.quit()
    assert process.wait_gone(vmm, 20)
    assert process.exit_status(vmm) == 0
