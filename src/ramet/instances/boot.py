"""boot: a first start of an instance's live disk, and what a driver needs to know to launch its VMM."""

from __future__ import annotations

import os
from pathlib import Path

from ramet import process
from ramet.errors import GuestError, LaunchError, VmmError, host_errors
from ramet.guests import image as images
from ramet.guests.client import AgentClient
from ramet.hypervisors.base import BootFiles, DirtySince, LaunchSpec
from ramet.instances import console_log, guest, live_files
from ramet.instances.context import Locked
from ramet.instances.observe import end_vmm
from ramet.model import MIB, Image, State
from ramet.signals import signals_held


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
    vmm, said_bytes = None, console_log.size_bytes(paths)
    try:
        vmm = instance.driver.boot(_boot_spec(instance, built, image_dir))
        instance.change(durable=False, vmm=vmm, console_offset_bytes=said_bytes)
        try:
            _wait_for_agent(instance, timeout_s)
            with guest.identified(paths.run, record, generation=record.generation + 1):
                pass  # nothing was frozen
        except (GuestError, VmmError) as err:
            status = process.exit_status_after(err, vmm)
            within, hint = f" within {timeout_s:g} s", "more memory or another image may help."
            if status is not None:  # its VMM was not waited for
                within, hint = "", f"what its VMM said is in {paths.vmm_log}."
            raise LaunchError(
                f"The guest of {record.name!r} did not come up{within}: {err.message}",
                argv=(),
                status=status,
                log_tail=console_log.tail(paths),
                hint=f"The console's last lines are above; {hint}",
            ) from err
        with signals_held():  # no guest runs that the record on disk does not know of
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
                pool=None,
                generation=record.generation + 1,
            )
    except BaseException:
        with signals_held():
            if vmm is not None:
                end_vmm(paths, vmm)
                instance.change(durable=False, vmm=None)
            live_files.clear(paths, keep_disk=True)
        raise


def launch_spec(
    instance: Locked,
    *,
    memory: Path,
    boot: BootFiles | None,
    vmstate: Path | None,
    snapshot_of: str | None = None,
    memory_is_sealed: bool = False,
) -> LaunchSpec:
    """What the driver needs to know of an instance."""
    paths = instance.paths
    return LaunchSpec(
        instance_id=instance.record.id,
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
        snapshot_of=snapshot_of,
        memory_is_sealed=memory_is_sealed,
    )


def _boot_spec(instance: Locked, built: Image, image_dir: Path) -> LaunchSpec:
    """A first boot of the instance's live disk with an image."""
    return launch_spec(
        instance,
        memory=instance.paths.memory,
        boot=BootFiles(
            kernel=image_dir / built.kernel,
            initrd=image_dir / built.initrd,
            cmdline=built.cmdline,
            tick_hz=built.tick_hz,
        ),
        vmstate=None,
    )


def _wait_for_agent(instance: Locked, timeout_s: float) -> None:
    with AgentClient.open(instance.paths.run, deadline_s=timeout_s) as agent:
        agent.ping(timeout_s=timeout_s)


def _make_empty_memory(path: Path, memory_mib: int) -> None:
    with host_errors(f"make the memory file {path}"):
        path.unlink(missing_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, memory_mib * MIB)
        finally:
            os.close(fd)
