"""``Host``: every verb as a method. The CLI is a thin layer over it; all its methods are synchronous.

Names are instance names (or ids). Every method may raise the errors of ``ramet.errors``; a verb in the wrong state raises
``StateError``, and a verb whose target state is already reached succeeds and says so in ``last_note``.
"""

from __future__ import annotations

import builtins
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ramet import config
from ramet.errors import ConfigError, NotFoundError, RametError
from ramet.guests import image as images
from ramet.instances import (
    choice,
    claim,
    commands,
    create,
    delete,
    doctor,
    fork,
    inspect,
    pool,
    pools,
    power,
    restore,
    snapshot_check,
    snapshots,
    standby,
    store_check,
)
from ramet.instances.context import Store
from ramet.instances.tidy import tidy
from ramet.model import (
    MIB,
    Accelerator,
    Capability,
    ExecResult,
    ForkFailure,
    ForkReport,
    Hypervisor,
    Image,
    InstanceInfo,
    MemoryPolicy,
    Ping,
    PoolInfo,
    RemovalPlan,
    SnapshotCheck,
    SnapshotInfo,
    StoreReport,
    Use,
)

if TYPE_CHECKING:
    from ramet.guests.client import ExecControl

DEFAULT_MEMORY_MIB = 256
DEFAULT_DISK_BYTES = 1024 * MIB


class Host:
    """One store on this host. ``home`` defaults to ``$RAMET_HOME``; ``progress`` is called with lines for a person."""

    def __init__(self, home: Path | None = None, *, progress: Callable[[str], None] | None = None) -> None:
        self._opened = Store(home, progress=progress)

    @property
    def _store(self) -> Store:
        """The store, with what a killed command has left in it done away with, however long ago it was opened."""
        tidy(self._opened)
        return self._opened

    @property
    def home(self) -> Path:
        return self._opened.paths.home

    @property
    def last_note(self) -> str | None:
        """What the last verb adds to its success, such as "already running"."""
        return self._opened.note

    # -- images -----------------------------------------------------------------------------------------------

    def image_build(self, name: str = "micro") -> Image:
        """Build the guest image, or find that it is built: same inputs, same digest."""
        self._fresh()
        return images.build(self._store.paths.images, name=name, cache_dir=config.cache_dir(), progress=self._store.say)

    def image_list(self) -> builtins.list[tuple[Image, tuple[str, ...]]]:
        """Every image and the names that point at it."""
        return images.list_images(self._store.paths.images)

    def image_remove(self, name_or_digest: str) -> None:
        """Delete an image, also a damaged one, that no instance and no named snapshot boots."""
        digest = images.locate(self._store.paths.images, name_or_digest).name
        images.remove(self._store.paths.images, digest, in_use_by=inspect.users_of_image(self._store, digest))

    # -- life -------------------------------------------------------------------------------------------------

    def create(
        self,
        name: str,
        *,
        image: str = "micro",
        memory_mib: int = DEFAULT_MEMORY_MIB,
        cpus: int = 1,
        disk_bytes: int = DEFAULT_DISK_BYTES,
        hypervisor: Hypervisor | None = None,
        accelerator: Accelerator | None = None,
        boot_timeout_s: float = power.BOOT_TIMEOUT_S,
    ) -> InstanceInfo:
        """Create and boot an instance; returns when its agent answers. On failure nothing is left."""
        self._fresh()
        made = create.create(
            self._store,
            name,
            image=image,
            memory_mib=memory_mib,
            cpus=cpus,
            disk_bytes=disk_bytes,
            hypervisor=hypervisor,
            accelerator=accelerator,
            boot_timeout_s=boot_timeout_s,
        )
        return self.get(made)

    def pause(self, name: str) -> InstanceInfo:
        """Freeze the workload, sync, stop the vCPUs."""
        self._fresh()
        power.pause(self._store, name)
        return self.get(name)

    def resume(self, name: str) -> InstanceInfo:
        """Start the vCPUs, then thaw the workload."""
        self._fresh()
        power.resume(self._store, name)
        return self.get(name)

    def standby(self, name: str) -> InstanceInfo:
        """Snapshot memory and disk, then end the VMM. On failure the instance runs on and nothing was kept."""
        self._fresh()
        standby.standby(self._store, name)
        return self.get(name)

    def restore(
        self,
        name: str,
        *,
        snapshot: str | None = None,
        discard_memory: bool = False,
        discard_disk: bool = False,
        verified: bool = False,
    ) -> InstanceInfo:
        """Wake from standby, or roll back to ``snapshot``; ``verified``: only if every page is what was published. On failure the
        instance is what it was."""
        self._fresh()
        restore.restore(
            self._store,
            name,
            snapshot=snapshot,
            discard_memory=discard_memory,
            discard_disk=discard_disk,
            verified=verified,
        )
        return self.get(name)

    def stop(
        self, name: str, *, discard_memory: bool = False, timeout_s: float = 30.0, force: bool = False
    ) -> InstanceInfo:
        """Shut the guest down and keep its disk; from standby only with ``discard_memory``."""
        self._fresh()
        power.stop(self._store, name, discard_memory=discard_memory, timeout_s=timeout_s, force=force)
        return self.get(name)

    def start(self, name: str) -> InstanceInfo:
        """Boot the live disk of a stopped (or failed) instance."""
        self._fresh()
        power.start(self._store, name)
        return self.get(name)

    def fork(
        self,
        source: str,
        names: str | Sequence[str] = (),
        *,
        count: int | None = None,
        start: bool = False,
        hypervisor: Hypervisor | None = None,
        memory_policy: MemoryPolicy = MemoryPolicy.CLONE,
        partial: bool = False,
        from_pool: bool = False,
        on_result: Callable[[str, RametError | None], object] = lambda _name, _error: None,
    ) -> ForkReport:
        """Fork an instance or ``snapshot:ID-or-name`` into one or many, called ``names`` or by free names; all or nothing.

        Forks sleep (or are stopped, if the source is) unless ``start``. A running source is paused for the capture alone;
        ``source_pause_s`` says for how long. Another ``hypervisor`` than the source's is for a stopped source only.

        Several are made and started at once. With ``partial`` one that fails is removed and told among the ``failures``, and the
        others stay; so it is if not all fit. One that cannot be removed again says so there. ``on_result`` is told of each as it
        comes: its name, and None or the error.

        With ``MemoryPolicy.SHARE`` the forks map the source's published memory until their first sleep, and keep that snapshot
        from being deleted.

        With ``from_pool`` forks that ``pool`` has parked get their names and identities, and run: ``start`` is implied. The
        other choices were made when they were parked.

        Raises:
            StateError: with ``from_pool``, if the source does not sleep any more; nothing was touched.
            ConflictError: with ``from_pool``, if it sleeps on another snapshot than its parked forks descend from, there are too
                few of them, or two in a row do not come up; nothing was touched, or what was taken is removed.
            UnsupportedError: if they are to share memory, and nothing here would refuse a write to it; nothing was touched.
            RoomError: if fewer fit than are asked for, as the first one shows; nothing is left.
        """
        self._fresh()
        names = (names,) if isinstance(names, str) else names  # a string is a sequence of strings too
        if from_pool:
            if partial or hypervisor is not None or memory_policy is not MemoryPolicy.CLONE:
                raise ConfigError(
                    "A parked fork is what it was made: from a pool there is no choice of hypervisor or memory policy, and all "
                    "are claimed or none.",
                    hint="Say --memory-policy where the pool is filled: ramet pool.",
                )
            claimed, left = claim.claim(self._store, source, names, count=count, on_result=on_result)
            infos = tuple(self.get(instance_id) for instance_id in claimed)
            return ForkReport(instances=infos, source_pause_s=None, method=None, left_in_pool=left)
        made = fork.fork(
            self._store,
            source,
            names,
            count=count,
            start=start,
            hypervisor=hypervisor,
            memory_policy=memory_policy,
            partial=partial,
            on_result=on_result,
        )
        return ForkReport(
            instances=tuple(self.get(instance_id) for instance_id in made.ids),
            source_pause_s=made.source_pause_s,
            method=made.method,
            failures=tuple(
                ForkFailure(
                    name=name,
                    code=err.code,
                    exit_status=err.exit_status,
                    message=err.message,
                    hint=err.hint,
                    left_id=made.left[name][0] if name in made.left else None,
                    left_why=made.left[name][1].message if name in made.left else None,
                )
                for name, err in made.failures.items()
            ),
        )

    def pool(
        self,
        source: str,
        *,
        size: int,
        memory_policy: MemoryPolicy = MemoryPolicy.CLONE,
        on_result: Callable[[str, RametError | None], object] = lambda _name, _error: None,
    ) -> PoolInfo:
        """Have ``size`` forks of a sleeping instance, or of ``snapshot:ID-or-name``, loaded and paused, to be claimed by
        ``fork(…, from_pool=True)``; 0 empties the pool.

        Those that descend from an older snapshot than the source sleeps on now are replaced, and so are those whose VMM has
        ended. What is missing is made, all of it or none; what is too much is removed. Nothing keeps the size afterwards: a
        claim leaves one less.

        Raises:
            StateError: if the source does not sleep; nothing was touched.
            RoomError: if not as many fit; none was added.
        """
        self._fresh()
        return pool.fill(self._store, source, size=size, memory_policy=memory_policy, on_result=on_result)

    def pool_get(self, source: str) -> PoolInfo:
        """The parked forks of one source; none, if it has no pool."""
        return pools.show(self._store, source)

    def pools(self) -> builtins.list[PoolInfo]:
        """Every source that has parked forks, and them."""
        return pools.all_pools(self._store)

    def remove(self, name: str, *, force: bool = False) -> None:
        """Delete an instance; a running or paused one only with ``force``. Its forks do not notice."""
        self._fresh()
        delete.remove(self._store, name, force=force)

    def removal_plan(self, name: str) -> RemovalPlan:
        """What ``remove`` with ``force`` would do to an instance: nothing is touched."""
        return delete.plan(self._store, name)

    # -- inside the guest -------------------------------------------------------------------------------------

    def exec(
        self,
        name: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        stdin: int | bytes | None = None,
        stdout: Callable[[bytes], None] | None = None,
        stderr: Callable[[bytes], None] | None = None,
        timeout_s: float | None = None,
        pty: tuple[int, int] | None = None,
        detach: bool = False,
        control: ExecControl | None = None,
    ) -> ExecResult:
        """Run a command in the guest. Output goes to the callbacks as it comes, or else into the result."""
        return commands.execute(
            self._store,
            name,
            argv,
            env=env,
            cwd=cwd,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            timeout_s=timeout_s,
            pty=pty,
            detach=detach,
            control=control,
        )

    def ping(self, name: str) -> Ping:
        """Ask the agent for its boot nonce and tick."""
        return commands.ping(self._store, name)

    def copy_in(self, name: str, src: Path, dst: str, *, progress: Callable[[int], None] | None = None) -> int:
        """Copy a file into the guest; returns its bytes. ``progress`` is told how many were sent, as they are."""
        return commands.copy_in(self._store, name, src, dst, progress=progress)

    def copy_out(self, name: str, src: str, dst: Path | int, *, progress: Callable[[int], None] | None = None) -> int:
        """Copy a file out of the guest, to a path, where it appears whole or not at all, or into a descriptor; returns its
        bytes. ``progress`` is told how many have come, as they do.
        """
        return commands.copy_out(self._store, name, src, dst, progress=progress)

    def console_socket(self, name: str) -> socket.socket:
        """A connection to the serial console; closing it detaches."""
        return commands.console(self._store, name)

    def logs(self, name: str) -> dict[str, Path]:
        """The paths of the ``console`` and ``vmm`` logs."""
        return inspect.logs(self._store, self._store.read(self._store.find(name)))

    # -- looking ----------------------------------------------------------------------------------------------

    def get(self, name: str) -> InstanceInfo:
        """One instance, as it is now."""
        return inspect.show(self._store, name)

    def list(self) -> builtins.list[InstanceInfo]:
        """Every instance, oldest first."""
        return inspect.all_instances(self._store)

    def du(self) -> builtins.list[Use]:
        """Disk that instances, snapshots and images occupy."""
        return inspect.use(self._store)

    def exists(self, name: str) -> bool:
        """Whether there is such an instance."""
        try:
            self._store.find(name)
        except NotFoundError:
            return False
        return True

    def snapshot_create(self, instance: str, name: str | None = None) -> SnapshotInfo:
        """Take a named snapshot of an instance, which runs (or sleeps) on."""
        self._fresh()
        return self.snapshot_get(snapshots.create(self._store, instance, name))

    def snapshots(self) -> builtins.list[SnapshotInfo]:
        """Every snapshot, oldest first."""
        return snapshots.all_snapshots(self._store)

    def snapshot_get(self, id_or_name: str) -> SnapshotInfo:
        """One snapshot."""
        return snapshots.show(self._store, id_or_name)

    def snapshot_check(self, names: str | Sequence[str] = ()) -> builtins.list[SnapshotCheck]:
        """Read snapshots, all of them if none is named, and compare them with what was published: each page of memory and disk,
        the device state, the manifest."""
        return snapshot_check.check(self._store, (names,) if isinstance(names, str) else names)

    def snapshot_remove(self, id_or_name: str) -> None:
        """Remove a snapshot that nothing references; by name, the name at least."""
        self._fresh()
        snapshots.remove(self._store, id_or_name)

    def doctor(self) -> builtins.list[Capability]:
        """What this host can do, why, what that means and what mends it."""
        return doctor.examine(self._store.paths)

    def why_no_vmm_users(self, hypervisor: Hypervisor) -> str | None:
        """None if each VMM runs as a user of its own on this host, else why not."""
        return choice.why_no_vmm_users(hypervisor)

    def shares_files(self, hypervisor: Hypervisor) -> bool:
        """Whether forks that share memory map its file, and not a sealed copy in RAM.

        Raises:
            UnsupportedError: if there is no such VMM.
        """
        return self._store.driver(hypervisor).opens_memory_read_only

    def check_store(self, *, repair: bool = False) -> StoreReport:
        """Whether the store is whole; with ``repair`` what can be mended is, and nothing is lost that something may need.

        What a command is at work on meanwhile is waited for a few seconds, and then told as busy.
        """
        return store_check.check(self._store, repair=repair)

    def _fresh(self) -> None:
        self._opened.note = None
