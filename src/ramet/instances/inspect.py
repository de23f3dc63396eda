"""show, ls and du: what is there, as it is now."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ramet import process
from ramet.errors import CorruptError, NotFoundError, RametError, VmmDiedError, host_errors
from ramet.instances import observe, pools, snapshots
from ramet.instances.context import Referrers, Store
from ramet.instances.live_files import mapped_file, maps_copy_in_ram
from ramet.linux import extents, memfd, procfs
from ramet.model import Failure, Hypervisor, InstanceInfo, InstanceRecord, MappedMemory, State, Use
from ramet.snapshots import manifest as manifests
from ramet.store import names

log = logging.getLogger("ramet.instances")


def show(store: Store, name: str) -> InstanceInfo:
    """One instance."""
    seen = observe.look(store, store.read(store.find(name)))
    return info(store, seen, store.referrers(store.readable_records()[0]), is_stale=pools.staleness(store)(seen))


def all_instances(store: Store) -> list[InstanceInfo]:
    """Every instance, oldest first; then those whose record is damaged, as failed ones that say so."""
    records, damaged = store.readable_records()
    referrers, is_stale = store.referrers(records), pools.staleness(store)
    found = []
    for record in records:
        with suppress(NotFoundError):  # removed meanwhile
            seen = observe.look(store, record)
            if seen.snapshot != record.snapshot:  # it has slept or woken since
                referrers = store.referrers(store.readable_records()[0])
            found.append(info(store, seen, referrers, is_stale=is_stale(seen)))
    return found + [_damaged(store, instance_id, err) for instance_id, err in sorted(damaged.items())]


def users_of_image(store: Store, digest: str) -> tuple[str, ...]:
    """The instances that boot an image when they are started, and the named snapshots whose forks do.

    Raises:
        CorruptError: if a record or a manifest cannot be read: what it needs is unknown.
    """
    users = [record.name for record in store.records() if record.image == digest]
    for name, snapshot_id in names.all_names(store.paths.snapshot_names).items():
        if manifests.load(store.paths.snapshot(snapshot_id)).image == digest:
            users.append(f"snapshot:{name}")
    return tuple(users)


def _damaged(store: Store, instance_id: str, err: CorruptError) -> InstanceInfo:
    """What can be said of an instance whose record cannot be read: its name, and what is wrong."""
    name = next(iter(names.names_of(store.paths.instance_names, instance_id)), instance_id)
    paths = store.paths.instance(instance_id)
    record = InstanceRecord(
        id=instance_id,
        name=name,
        state=State.FAILED,
        failure=Failure.RECORD_DAMAGED,
        failure_detail=f"{err.message} To remove the instance: ramet rm --force {name}",
        created_at_unix_s=paths.dir.stat().st_mtime,
        hypervisor=Hypervisor.QEMU,
        image="unknown",
        memory_mib=0,
        cpus=0,
        disk_bytes=0,
        machine_id="0" * 32,
    )
    return info(store, record, {})


def info(
    store: Store, record: InstanceRecord, referrers: Mapping[str, Referrers], *, is_stale: bool = False
) -> InstanceInfo:
    """An instance as the surface gives it; ``record`` says what is true now."""
    paths = store.paths.instance(record.id)
    snapshot = None
    detail = record.failure_detail
    if record.snapshot is not None and store.paths.snapshot(record.snapshot).dir.is_dir():
        try:
            snapshot = snapshots.info(store, record.snapshot, referrers.get(record.snapshot))
        except (CorruptError, NotFoundError) as err:
            detail = detail or f"Its snapshot {record.snapshot} cannot be used: {err.message}"
    live = record.state in observe.HAS_VMM
    return InstanceInfo(
        id=record.id,
        name=record.name,
        state=record.state,
        failure=record.failure,
        failure_detail=detail,
        hypervisor=record.hypervisor,
        accelerator=record.vmm_build.accelerator if record.vmm_build else None,
        pid=record.vmm.pid if live and record.vmm else None,
        memory_mib=record.memory_mib,
        cpus=record.cpus,
        disk_bytes=record.disk_bytes,
        image=record.image,
        created_at_unix_s=record.created_at_unix_s,
        lineage=record.lineage,
        memory_policy=record.memory_policy,
        snapshot=snapshot,
        mapped_snapshot=record.mapped_snapshot,
        diff_base=record.diff_base,
        live_disk=str(paths.disk) if record.state is not State.STANDBY and paths.disk.exists() else None,
        mapped_memory=_mapped_memory(store, record) if live else None,
        run_dir=str(paths.run),
        logs={kind: str(path) for kind, path in logs(store, record).items()},
        pool=record.pool,
        stale=is_stale,
    )


def logs(store: Store, record: InstanceRecord) -> dict[str, Path]:
    """The log of the guest's ``console``, and what its ``vmm`` says of its life; they exist from the first boot on."""
    paths = store.paths.instance(record.id)
    return {"console": paths.console_log, "vmm": store.driver(record.hypervisor).log_of(paths.vmm_log)}


def _mapped_memory(store: Store, record: InstanceRecord) -> MappedMemory | None:
    """What /proc shows of the guest's memory; None if the VMM is gone meanwhile, or has put something else in the place of it."""
    if record.vmm is None:
        return None
    try:
        path = mapped_file(store.paths, record)
        mappings = procfs.mappings_of_file(record.vmm.pid, path)
        opened = procfs.descriptors_of_file(record.vmm.pid, path)
        is_sealed = maps_copy_in_ram(record) and _is_sealed(path)
    except (OSError, VmmDiedError) as err:
        log.info("%s: what its VMM maps cannot be told: %s", record.name, err)
        return None
    if not mappings:
        return None
    writable = any(descriptor.writable for descriptor in opened) and not is_sealed
    return MappedMemory(path=str(path), dev=mappings[0].dev, ino=mappings[0].ino, writable=writable)


def _is_sealed(path: Path) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return memfd.is_sealed(fd)
    finally:
        os.close(fd)


def use(store: Store) -> list[Use]:
    """What each instance, snapshot and image takes, and all together."""
    found = []
    blocks: list[tuple[int, int]] | None = []
    for name, kind, paths, in_memory in _takers(store):
        one, where = _use(name, kind, paths, in_memory)
        found.append(one)
        blocks = None if blocks is None or where is None else blocks + where
    return [*found, _total(found, blocks)]


InMemory = tuple[int | None, int | None]
"""Its own, and its share of all; None of what has none."""


def _takers(store: Store) -> Iterator[tuple[str, str, list[Path], InMemory]]:
    """Name, kind, files, and what it has in memory."""
    records = store.readable_records()[0]
    for record in records:
        paths = store.paths.instance(record.id)
        vmm = record.vmm if record.vmm is not None and process.is_alive(record.vmm) else None
        in_memory = _memory(vmm.pid) if vmm else (None, None)
        yield record.name, "instance", [*_files(paths.work), *_files(paths.logs)], in_memory
    copies: dict[str, int] = {}
    for one in records:
        if one.copy_in_ram and maps_copy_in_ram(one) and one.copy_in_ram.snapshot_id not in copies:
            taken = _copy_bytes(store, one)
            if taken is not None:  # else its VMM has ended, and another may have it
                copies[one.copy_in_ram.snapshot_id] = taken
    for snapshot in snapshots.all_snapshots(store):
        label = ", ".join(snapshot.names) or f"{snapshot.id} (of {snapshot.instance_name})"
        yield label, "snapshot", _files(Path(snapshot.dir)), (copies.get(snapshot.id), None)
    for path in sorted(store.paths.images.iterdir()):
        if (path / "image.json").exists():
            yield path.name, "image", _files(path), (None, None)


def _copy_bytes(store: Store, record: InstanceRecord) -> int | None:
    """What the copy in RAM takes that a VMM maps; None if it has ended."""
    with suppress(VmmDiedError, OSError):
        return mapped_file(store.paths, record).stat().st_blocks * 512
    return None


def _total(found: Sequence[Use], blocks: Sequence[tuple[int, int]] | None) -> Use:
    exclusive = [one.exclusive_bytes for one in found]
    once = sum(end - start for start, end in extents.union(blocks)) if blocks is not None else None
    return Use(
        name="all",
        kind="total",
        allocated_bytes=sum(one.allocated_bytes for one in found) if once is None else once,
        exclusive_bytes=None if None in exclusive else sum(one or 0 for one in exclusive),
        apparent_bytes=sum(one.apparent_bytes for one in found),
        own_memory_bytes=sum(one.own_memory_bytes or 0 for one in found),
        pss_bytes=sum(one.pss_bytes or 0 for one in found),
    )


def _files(directory: Path) -> list[Path]:
    try:
        return [path for path in sorted(directory.iterdir()) if path.is_file() and not path.is_symlink()]
    except FileNotFoundError:
        return []  # removed meanwhile


def _use(name: str, kind: str, paths: list[Path], in_memory: InMemory) -> tuple[Use, list[tuple[int, int]] | None]:
    """And the physical (start, end) of all its blocks; None where the file system cannot tell."""
    allocated = apparent = 0
    exclusive: int | None = 0
    blocks: list[tuple[int, int]] = []
    for path in paths:
        try:
            with host_errors(f"measure {path}"):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    stat = os.fstat(fd)
                    allocated += stat.st_blocks * 512
                    apparent += stat.st_size
                    found = extents.fiemap(fd)
                finally:
                    os.close(fd)
        except RametError as err:
            if isinstance(err.__cause__, FileNotFoundError):
                continue  # removed meanwhile
            exclusive = None  # this file system cannot tell
            continue
        blocks += [(one.physical, one.physical + one.length) for one in found]
        if exclusive is not None:
            exclusive += extents.exclusive_bytes(found)
    own, pss = in_memory
    one = Use(
        name=name,
        kind=kind,
        allocated_bytes=allocated,
        exclusive_bytes=exclusive,
        apparent_bytes=apparent,
        own_memory_bytes=own,
        pss_bytes=pss,
    )
    return one, None if exclusive is None else blocks


def _memory(pid: int) -> InMemory:
    """Its own, and its share of all; None of a process that has ended, or that we may not look at."""
    try:
        found = procfs.smaps_rollup(pid)
    except OSError:
        return None, None
    return procfs.own_memory_bytes(found), found["Pss"]
