"""create: check everything, make the instance's directory, boot it, and give it its identity."""

from __future__ import annotations

import errno
import os
import time
import uuid
from pathlib import Path

from ramet import config, process
from ramet.errors import (
    CommandError,
    ConfigError,
    ConflictError,
    GuestError,
    LaunchError,
    NoSpaceError,
    VmmError,
    host_errors,
)
from ramet.guests import image as images
from ramet.guests.client import AgentClient
from ramet.hypervisors.base import BootFiles, DirtySince, Hardware, LaunchSpec
from ramet.instances import choice, guest, live_files
from ramet.instances.context import Locked, Store, check_new_name
from ramet.instances.observe import reap_strays
from ramet.model import MIB, Accelerator, Hypervisor, Image, InstanceRecord, State
from ramet.paths import InstancePaths
from ramet.store import atomic, names
from ramet.store.layout import discard, new_id, work_in_progress
from ramet.store.locks import locked

DISK_LABEL = "ramet-data"
MKFS_TIMEOUT_S = 60


def create(
    store: Store,
    name: str,
    *,
    image: str,
    memory_mib: int,
    cpus: int,
    disk_bytes: int,
    hypervisor: Hypervisor | None,
    accelerator: Accelerator | None,
    boot_timeout_s: float,
) -> str:
    """Create and boot an instance; returns its id once its agent has answered. On failure nothing is left.

    Raises:
        ConfigError: for bad input, before anything is touched.
        ConflictError: if the name is taken.
        LaunchError: if the VMM or the guest did not come up.
    """
    check_new_name(name)
    config.check_memory(memory_mib, host_mib=config.host_memory_mib())
    _check_shape(cpus, disk_bytes)
    if names.lookup(store.paths.instance_names, name) is not None:
        raise ConflictError(f"There is already an instance called {name!r}.", hint="`ramet ls` lists them.")
    chosen = choice.choose(hypervisor, accelerator)
    driver = store.driver(chosen.hypervisor)
    built, _ = images.resolve(store.paths.images, image)
    mkfs = process.find_program("mkfs.ext4", package="e2fsprogs")
    record = InstanceRecord(
        id=new_id(),
        name=name,
        state=State.CREATED,
        created_at_unix_s=time.time(),
        hypervisor=chosen.hypervisor,
        image=built.digest,
        memory_mib=memory_mib,
        cpus=cpus,
        disk_bytes=disk_bytes,
        machine_id=uuid.uuid4().hex,
        vmm_build=driver.build(Hardware(memory_mib=memory_mib, cpus=cpus, accelerator=chosen.accelerator)),
        pending="create",
    )
    with locked(store.paths.locks, f"instance-{record.id}"):
        instance = Locked(store, record)
        try:
            with work_in_progress(store.paths, record.id) as work:
                make_directories(work)
                _make_disk(mkfs, InstancePaths(dir=work).disk, disk_bytes)
                establish(store, work, record)
            boot(instance, timeout_s=boot_timeout_s)
        except BaseException:
            abandon(store, instance)
            raise
    store.note = chosen.why
    return record.id


def make_directories(directory: Path) -> None:
    """The directories of a new instance."""
    paths = InstancePaths(dir=directory)
    with host_errors(f"make {directory}"):
        for path in (paths.work, paths.run, paths.logs):
            path.mkdir(mode=0o700)


def establish(store: Store, work: Path, record: InstanceRecord) -> None:
    """Turn work in progress into an instance and claim its name; if the name is taken meanwhile, nothing is left.

    Raises:
        ConflictError: if somebody else got the name.
    """
    final = store.paths.instance(record.id).dir
    with process.signals_held():  # never a directory without a name
        with host_errors(f"create the instance {record.name!r}"):
            atomic.write_json(work / "instance.json", record)
            work.rename(final)
            atomic.fsync_directory(final.parent)
        try:
            names.claim(store.paths.instance_names, record.name, record.id, what="instance")
        except BaseException:
            discard(store.paths, final)
            raise


def abandon(store: Store, instance: Locked) -> None:
    """Undo ``establish``, as far as it came: no VMM, no name, no directory."""
    with process.signals_held():
        if instance.paths.dir.exists():
            reap_strays(instance.paths.run)  # one that was recorded, or not yet
        names.release(store.paths.instance_names, instance.record.name, instance.record.id)
        if instance.paths.dir.exists():
            discard(store.paths, instance.paths.dir)


def boot(instance: Locked, *, timeout_s: float) -> None:
    """Boot the live disk with the instance's image, wait for the agent, give it its identity, and record it running.

    Raises:
        LaunchError: with the tail of the console, if the guest did not come up; no VMM is left.
    """
    store, paths, record = instance.store, instance.paths, instance.record
    built, image_dir = images.resolve(store.paths.images, record.image)
    build = instance.driver.build(store.hardware(record))  # another one than at the last boot, after an upgrade
    if instance.driver.dirty_since is DirtySince.MAPPED:
        _make_empty_memory(paths.memory, record.memory_mib)
    store.say(f"{record.name}: booting")
    vmm = None
    try:
        vmm = instance.driver.boot(boot_spec(instance, built, image_dir))
        instance.change(durable=False, vmm=vmm)
        try:
            _wait_for_agent(instance, timeout_s)
            with guest.identified(paths.run, record, generation=record.generation + 1):
                pass  # nothing was frozen
        except (GuestError, VmmError) as err:
            raise LaunchError(
                f"The guest of {record.name!r} did not come up within {timeout_s:g} s: {err.message}",
                argv=(),
                status=process.exit_status(vmm),
                log_tail=console_tail(paths),
                hint="The console's last lines are above; more memory or another image may help.",
            ) from err
    except BaseException:
        with process.signals_held():
            if vmm is not None:
                process.kill_and_wait(vmm)
                instance.change(durable=False, vmm=None)
            live_files.clear(paths, keep_disk=True)
        raise
    with process.signals_held():  # no guest runs that the record on disk does not know of
        instance.change(
            state=State.RUNNING,
            vmm_build=build,
            failure=None,
            failure_detail=None,
            pending=None,
            snapshot=None,
            mapped_snapshot=None,
            diff_base=None,
            needs_full=False,
            generation=record.generation + 1,
        )


def boot_spec(instance: Locked, built: Image, image_dir: Path) -> LaunchSpec:
    """A first boot of the instance's live disk with an image."""
    return launch_spec(
        instance,
        memory=instance.paths.memory,
        boot=BootFiles(kernel=image_dir / built.kernel, initrd=image_dir / built.initrd, cmdline=built.cmdline),
        vmstate=None,
    )


def launch_spec(instance: Locked, *, memory: Path, boot: BootFiles | None, vmstate: Path | None) -> LaunchSpec:
    """What the driver needs to know of an instance."""
    paths = instance.paths
    return LaunchSpec(
        name=instance.record.name,
        hardware=instance.store.hardware(instance.record),
        memory=memory,
        disk=paths.disk,
        work_dir=paths.work,
        run_dir=paths.run,
        vmm_log=paths.vmm_log,
        console_log=paths.console_log,
        boot=boot,
        vmstate=vmstate,
    )


def console_tail(paths: InstancePaths, limit: int = 1500) -> str:
    """The last ``limit`` bytes of the guest's console, for an error; empty if there are none."""
    try:
        return paths.console_log.read_bytes()[-limit:].decode(errors="replace")
    except FileNotFoundError:
        return ""


def _wait_for_agent(instance: Locked, timeout_s: float) -> None:
    with AgentClient.open(instance.paths.run, deadline_s=timeout_s) as agent:
        agent.ping(timeout_s=timeout_s)


def _check_shape(cpus: int, disk_bytes: int) -> None:
    if not 1 <= cpus <= config.CPUS_MAX:
        raise ConfigError(f"{cpus} is no number of CPUs for a guest.", hint=f"Use 1 to {config.CPUS_MAX}.")
    if disk_bytes < config.DISK_MIN_BYTES or disk_bytes % 4096:
        raise ConfigError(
            f"A disk of {disk_bytes} bytes cannot be used.",
            hint=f"Give it a multiple of 4K, at least {config.DISK_MIN_BYTES // MIB}M.",
        )


def _make_empty_memory(path: Path, memory_mib: int) -> None:
    with host_errors(f"make the memory file {path}"):
        path.unlink(missing_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, memory_mib * MIB)
        finally:
            os.close(fd)


def _make_disk(mkfs: str, path: Path, size_bytes: int) -> None:
    with host_errors(f"make the disk {path}"):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, size_bytes)
        except OSError as err:
            if err.errno == errno.EFBIG:
                raise ConfigError(f"This file system cannot hold a disk of {size_bytes} bytes.") from err
            raise
        finally:
            os.close(fd)
    try:
        process.run(
            [mkfs, "-q", "-F", "-L", DISK_LABEL, "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1", str(path)],
            timeout_s=MKFS_TIMEOUT_S,
        )
    except CommandError as err:
        if "No space left" in err.stderr_tail:
            raise NoSpaceError("There is no room for the new disk.", hint="Free some room and try again.") from err
        raise
