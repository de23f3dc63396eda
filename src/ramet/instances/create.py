"""create: check everything, make the instance's directory and its disk, and boot it."""

from __future__ import annotations

import errno
import os
import time
import uuid
from pathlib import Path

from ramet import config, helpers
from ramet.errors import (
    CommandError,
    ConfigError,
    ConflictError,
    NoSpaceError,
    host_errors,
)
from ramet.guests import image as images
from ramet.hypervisors.base import Hardware
from ramet.instances import birth, choice, naming
from ramet.instances.boot import boot
from ramet.instances.context import Locked, Store
from ramet.instances.delete import take_away
from ramet.model import MIB, Accelerator, Hypervisor, InstanceRecord, State
from ramet.paths import InstancePaths
from ramet.store import names
from ramet.store.chores import Kind
from ramet.store.layout import work_in_progress
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
    naming.check_new_name(name)
    config.check_memory(memory_mib, host_mib=config.host_memory_mib())
    _check_shape(cpus, disk_bytes)
    if names.lookup(store.paths.instance_names, name) is not None:
        raise ConflictError(f"There is already an instance called {name!r}.", hint="`ramet ls` lists them.")
    chosen = choice.choose(hypervisor, accelerator)
    driver = store.driver(chosen.hypervisor)
    built, _ = images.resolve(store.paths.images, image)
    mkfs = helpers.find_program("mkfs.ext4", package="e2fsprogs")
    record = InstanceRecord(
        id=birth.new_ids(store, 1)[0],
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
    with store.even_if_killed(Kind.REMOVE, record.id), locked(store.paths.locks, f"instance-{record.id}"):
        instance = Locked(store, record)
        try:
            with work_in_progress(store.paths, record.id) as work:
                birth.make_directories(work)
                _make_disk(mkfs, InstancePaths(dir=work).disk, disk_bytes)
                birth.establish(store, work, record)
            boot(instance, timeout_s=boot_timeout_s)
        except BaseException:
            take_away(instance)
            raise
    store.note = chosen.why
    return record.id


def _check_shape(cpus: int, disk_bytes: int) -> None:
    if not 1 <= cpus <= config.CPUS_MAX:
        raise ConfigError(f"{cpus} is no number of CPUs for a guest.", hint=f"Use 1 to {config.CPUS_MAX}.")
    if disk_bytes < config.DISK_MIN_BYTES or disk_bytes % 4096:
        raise ConfigError(
            f"A disk of {_in_words(disk_bytes)} cannot be used.",
            hint=f"Give it a multiple of 4K, at least {config.DISK_MIN_BYTES // MIB}M.",
        )


def _in_words(size_bytes: int) -> str:
    return f"{size_bytes} bytes" if size_bytes % MIB else f"{size_bytes // MIB} MiB"


def _make_disk(mkfs: str, path: Path, size_bytes: int) -> None:
    with host_errors(f"make the disk {path}"):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, size_bytes)
        except OSError as err:
            if err.errno == errno.EFBIG:
                raise ConfigError(f"This file system cannot hold a disk of {_in_words(size_bytes)}.") from err
            raise
        finally:
            os.close(fd)
    try:
        helpers.run(
            [mkfs, "-q", "-F", "-L", DISK_LABEL, "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1", str(path)],
            timeout_s=MKFS_TIMEOUT_S,
        )
    except CommandError as err:
        if "No space left" in err.stderr_tail:
            raise NoSpaceError("There is no room for the new disk.", hint="Free some room and try again.") from err
        raise
