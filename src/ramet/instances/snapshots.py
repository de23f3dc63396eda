"""snapshot create, ls, show, rm: named snapshots are the same directories with a name pointing at them."""

from __future__ import annotations

import logging
from contextlib import ExitStack

from ramet.errors import ConflictError, CorruptError, InUseError, NotFoundError
from ramet.instances import naming
from ramet.instances.context import Locked, Referrers, Store, snapshot_of
from ramet.instances.observe import exclusive
from ramet.instances.taking import keep_as_base, take
from ramet.model import SnapshotInfo, State
from ramet.signals import signals_held
from ramet.snapshots import manifest as manifests
from ramet.snapshots.publish import publish
from ramet.spelling import in_short
from ramet.states import Verb, require
from ramet.store import names
from ramet.store.chores import Kind

log = logging.getLogger("ramet.snapshots")


def create(store: Store, instance_name: str, name: str | None) -> str:
    """Take a named snapshot; returns its id. A running instance is paused for the capture and runs on, whatever happens.

    Raises:
        ConflictError: if the name is taken; nothing was touched.
    """
    if name is not None:
        naming.check_new_name(name, what="snapshot")
        if names.lookup(store.paths.snapshot_names, name) is not None:
            raise ConflictError(f"There is already a snapshot called {name!r}.", hint="`ramet snapshot ls` lists them.")
    with exclusive(store, instance_name) as instance:
        record = instance.record
        require(Verb.SNAPSHOT, record, name=instance_name)
        name = name or naming.free_snapshot_name(store, record.name)
        if record.state is State.STANDBY:
            snapshot_id = snapshot_of(record)
            with store.reading(snapshot_id):
                names.claim(store.paths.snapshot_names, name, snapshot_id, what="snapshot")
            return snapshot_id
        return _capture(store, instance, name)


def _capture(store: Store, instance: Locked, name: str) -> str:
    with ExitStack() as stack:
        taken, _ = take(instance, "snapshot", stack)
        manifest = taken.summed_up()
        with store.publishing(manifest.id):
            publish(taken.files.dir, store.paths.snapshot(manifest.id), manifest)
            names.claim(store.paths.snapshot_names, name, manifest.id, what="snapshot")
            try:
                keep_as_base(instance, manifest)
            except BaseException:  # nobody has a snapshot of that name, then
                names.release(store.paths.snapshot_names, name, manifest.id)
                raise
    return manifest.id


def remove(store: Store, text: str) -> None:
    """Remove a snapshot. By name: the name goes, and the files with it unless something else needs them.

    Raises:
        InUseError: by id, if anything references it; nothing was touched.
    """
    snapshot_id = store.find_snapshot(text)
    name = text.removeprefix("snapshot:")
    if names.lookup(store.paths.snapshot_names, name) is None:
        store.delete_snapshot(snapshot_id)
        return
    try:
        # Never a snapshot that neither a name nor an instance refers to. Whoever reads it is waited for before all that.
        with (
            store.deleting(snapshot_id),
            signals_held(),
            store.ended_if_killed(Kind.COLLECT, snapshot_id),
        ):
            store.records()  # whether they can all be read: otherwise it stays, and so does its name
            names.release(store.paths.snapshot_names, name, snapshot_id)
            store.delete_locked(snapshot_id)
    except InUseError as err:
        store.note = f"the name is gone; the files stay, in use by {in_short(err.dependents)}"


def show(store: Store, text: str) -> SnapshotInfo:
    """One snapshot, by name or id."""
    snapshot_id = store.find_snapshot(text)
    return info(store, snapshot_id, store.referrers(store.readable_records()[0]).get(snapshot_id))


def all_snapshots(store: Store) -> list[SnapshotInfo]:
    """Every snapshot, oldest first; one whose manifest is damaged is left out, with a warning."""
    referrers = store.referrers(store.readable_records()[0])
    found = []
    for directory in sorted(store.paths.snapshots.iterdir()):
        try:
            found.append(info(store, directory.name, referrers.get(directory.name)))
        except NotFoundError:
            continue  # removed meanwhile
        except CorruptError as err:
            log.warning("snapshot %s is not listed: %s", directory.name, err.message)
    return sorted(found, key=lambda snapshot: (snapshot.created_at_unix_s, snapshot.id))


def info(store: Store, snapshot_id: str, referrers: Referrers | None) -> SnapshotInfo:
    """A snapshot as the surface gives it.

    Raises:
        CorruptError: if its manifest is damaged.
    """
    paths = store.paths.snapshot(snapshot_id)
    manifest = manifests.load(paths)
    referrers = referrers or Referrers()
    return SnapshotInfo(
        id=manifest.id,
        names=referrers.names,
        dir=str(paths.dir),
        memory=str(paths.memory),
        vmstate=str(paths.vmstate),
        disk=str(paths.disk),
        method=manifest.memory.method,
        kind=manifest.kind,
        parent=manifest.parent,
        instance_id=manifest.instance_id,
        instance_name=naming.owner_name(store, manifest),
        created_at_unix_s=manifest.created_at_unix_s,
        memory_mib=manifest.memory_mib,
        written_bytes=manifest.memory.written_bytes,
        referenced_by=referrers.in_words,
    )
