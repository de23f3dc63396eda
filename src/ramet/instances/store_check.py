"""doctor --store: is the store whole? Names, records, snapshots, modes, VMMs that nobody owns; and mending what can be mended.

Everything is looked at without a lock first. What seems wrong is looked at again under its own lock: a command at work changes
several files, and its store is whole only between them.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ramet import process
from ramet.errors import (
    ConflictError,
    CorruptError,
    FormatVersionError,
    HostError,
    LockedError,
    NotFoundError,
    RametError,
    StateError,
    host_errors,
)
from ramet.hypervisors import ownership
from ramet.hypervisors.users import USERS, user_number
from ramet.instances import damaged, live_files, naming, observe
from ramet.instances.context import Locked, Store
from ramet.model import InstanceRecord, Manifest, Problem, State, StoreReport, VmmProcess
from ramet.paths import SnapshotPaths
from ramet.snapshots import manifest as manifests
from ramet.store import atomic, chores, names
from ramet.store.layout import discard, is_id, is_work
from ramet.store.locks import locked

log = logging.getLogger("ramet.store")
LOCK_S = 5.0
"""How long a command at work is waited for."""
PRIVATE_MODE, PUBLISHED_MODE = 0o700, 0o400
PUBLISHED = frozenset({"manifest.json", "memory", "vmstate", "disk.raw", "memory.sums", "disk.sums"})
SHARED_BY_FORKS = frozenset({"memory", "vmstate"})
NOT_OURS = "It is not ours."


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    text: str
    mend: str
    """What a repair does, or else what a person can."""
    action: Callable[[], object] | None = None
    """The repair; None: there is none that could not lose something."""


Look = Callable[[], list[_Found]]
_Parents = Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class _Object:
    """Something in the store that can be wrong, under one lock."""

    where: str
    key: str
    look: Look


def check(store: Store, *, repair: bool) -> StoreReport:
    """Look at all of the store; with ``repair`` mend what can be mended without losing what something may need."""
    instances, strange = _entries(store.paths.instances)
    snapshots, more = _entries(store.paths.snapshots)
    vmms = process.marked_below(store.paths.instances)
    problems = [Problem(where=str(path), text=NOT_OURS, mend="Move it elsewhere.") for path in (*strange, *more)]
    problems += [
        Problem(where=str(path), text=NOT_OURS, mend="Move it elsewhere.")
        for path in sorted(store.paths.tmp.iterdir())
        if not is_work(path.name)
    ]
    parents = _parents_of(store, snapshots)
    called = {one: f"instance {damaged.instance_label(store, one)}" for one in instances}
    objects = [
        *(_Object(called[one], f"instance-{one}", partial(_instance, store, one)) for one in instances),
        *(_Object(f"snapshot {one}", f"snapshot-{one}", partial(_snapshot, store, one, parents)) for one in snapshots),
        *_names(store),
        *(_Object(f"process {vmm.pid}", f"instance-{one}", partial(_vmm, store, one, vmm)) for one, vmm in vmms),
    ]
    busy = []
    for one in objects:
        try:
            problems += _examine(store, one, repair=repair)
        except LockedError:
            busy.append(one.where)
    return StoreReport(
        instances=len(instances),
        snapshots=len(snapshots),
        vmms=len(vmms),
        problems=tuple(problems),
        busy=tuple(busy),
    )


def _entries(directory: Path) -> tuple[list[str], list[Path]]:
    """The ids in a directory of the store, and what else is in it."""
    ours, strange = [], []
    for path in sorted(directory.iterdir()):
        if is_id(path.name) and path.is_dir() and not path.is_symlink():
            ours.append(path.name)
        else:
            strange.append(path)
    return ours, strange


def _examine(store: Store, one: _Object, *, repair: bool) -> list[Problem]:
    try:
        if not one.look():
            return []
    except (OSError, RametError) as err:
        log.debug("%s: %s; looking again, under its lock", one.where, err)
    with locked(store.paths.locks, one.key, timeout_s=LOCK_S):
        try:
            found = one.look()
        except (OSError, RametError) as err:
            return [Problem(where=one.where, text=f"It could not be looked at: {err}", mend="See to that first.")]
        return [_mended(one.where, this, repair=repair) for this in found]


def _mended(where: str, found: _Found, *, repair: bool) -> Problem:
    text, can_be_mended = found.text, found.action is not None
    mended = False
    if repair and found.action is not None:
        try:
            found.action()
            mended = True
        except RametError as err:
            text = f"{text} It could not be mended: {err.message}"
    return Problem(where=where, text=text, mend=found.mend, can_be_mended=can_be_mended, mended=mended)


# -- what is looked at ----------------------------------------------------------------------------------------------


def _instance(store: Store, instance_id: str) -> list[_Found]:
    paths = store.paths.instance(instance_id)
    if not paths.dir.is_dir():
        return []  # removed meanwhile
    try:
        record = store.read(instance_id)
    except NotFoundError:
        return []  # removed meanwhile
    except CorruptError as err:
        if not paths.record.exists():
            mend = (
                f"Restore it from a backup. Or keep {paths.disk}, and give the rest up: ramet rm --force {instance_id}"
            )
            return [_Found(text="It has no record.", mend=mend)]
        remove = f"Restore it from a backup, or remove it: ramet rm --force {instance_id}"
        is_whole = isinstance(err, FormatVersionError)
        return [_Found(text=err.message, mend=atomic.OTHER_VERSION if is_whole else remove)]
    found = list(_loose(paths.dir, PRIVATE_MODE, ownership.PASSABLE))
    if names.lookup(store.paths.instance_names, record.name) != instance_id:
        found.append(
            _Found(
                text=f"The name {record.name!r} does not lead to it.",
                mend="It gets that name, or its id for a name if another has that.",
                action=partial(_give_name, store, record),
            )
        )
    if record.pending is not None:
        found.append(
            _Found(
                text=f"`ramet {record.pending}` did not end in order.",
                mend="It is tidied up, as the next verb on it does.",
                action=partial(_settle, store, record),
            )
        )
    elif observe.observed(store, record) is not record:
        found.append(
            _Found(
                text=f"Its record says {record.state.value}, and its VMM has ended.",
                mend="The record is brought up to that.",
                action=partial(_settle, store, record),
            )
        )
    found += [
        _Found(
            text=f"It needs the snapshot {snapshot_id}, which is not there.",
            mend=f"Boot its disk if it is live (ramet start), or save {paths.disk} if it is there and remove it (ramet rm).",
        )
        for snapshot_id in record.references
        if not store.paths.snapshot(snapshot_id).dir.is_dir()
    ]
    if observe.half_records(paths.dir):
        found.append(
            _Found(
                text="A record is left whose writer was killed.",
                mend="It is removed; the one before it counts.",
                action=partial(observe.remove_half_records, paths.dir),
            )
        )
    if record.pending is None:
        found += _live_files(store, record)
    return found


def _settle(store: Store, record: InstanceRecord) -> None:
    """What a verb does first; it leaves a guest for the next one that it cannot resume."""
    if observe.settle(store, record).pending is not None:
        raise StateError(
            f"The guest of {record.name!r} could not be resumed.",
            actual=record.state.value,
            required=[record.state.value],
        )


def _give_name(store: Store, record: InstanceRecord) -> None:
    try:
        names.claim(store.paths.instance_names, record.name, record.id, what="instance")
    except ConflictError:
        names.claim(store.paths.instance_names, record.id, record.id, what="instance")
        Locked(store, record).change(name=record.id)


def _live_files(store: Store, record: InstanceRecord) -> Iterator[_Found]:
    paths = store.paths.instance(record.id)
    sleeps_on_one = record.snapshot is not None and store.paths.snapshot(record.snapshot).dir.is_dir()
    if record.state is State.STANDBY and sleeps_on_one and (paths.memory.exists() or paths.disk.exists()):
        yield _Found(
            text="It sleeps, and files of a live VMM are left.",
            mend="They are removed: what it sleeps on is its snapshot.",
            action=partial(live_files.clear, paths, keep_disk=False),
        )
    if record.state is State.STOPPED and not paths.disk.exists():
        yield _Found(text="It is stopped and has no disk.", mend="Remove it: ramet rm")


def _snapshot(store: Store, snapshot_id: str, parents: _Parents) -> list[_Found]:
    paths = store.paths.snapshot(snapshot_id)
    if not paths.dir.is_dir():
        return []  # deleted meanwhile
    found = list(_loose(paths.dir, PRIVATE_MODE))
    damage: list[_Found] = []
    manifest = None
    try:
        manifest = manifests.load(paths)
    except (CorruptError, NotFoundError) as err:
        damage.append(_Found(text=err.message, mend=damaged.way_out(store, snapshot_id, err)))
    for path in sorted(paths.dir.iterdir()):
        if path.name not in PUBLISHED or not path.is_file() or path.is_symlink():
            found.append(_Found(text=f"{path.name} is not ours.", mend=f"Move it elsewhere: {path}"))
        else:
            found += _loose(path, PUBLISHED_MODE, *((ownership.SHARED,) if _is_shared(path, manifest) else ()))
    found += [
        _Found(text=f"{path.name} is lost.", mend="Its next sleep and its forks have it again: ramet snapshot check")
        for path in (paths.memory_sums, paths.disk_sums)
        if not path.exists()
    ]
    if manifest is None:
        return found + damage
    try:
        manifests.check_files(paths, manifest)
    except CorruptError as err:
        return [*found, _Found(text=err.message, mend=err.hint or "Remove it: ramet snapshot rm")]
    records, unreadable = store.readable_records()
    try:
        referrers = store.referrers(records)
    except CorruptError:  # a name that cannot be read may be its own; it is told of the name
        return found
    if not unreadable and snapshot_id not in referrers and snapshot_id not in chores.noted_ids(store.paths.locks):
        found.append(_unneeded(store, paths, manifest, records, parents))
    return found


def _unneeded(
    store: Store, paths: SnapshotPaths, manifest: Manifest, records: Sequence[InstanceRecord], parents: _Parents
) -> _Found:
    """A snapshot that nothing refers to: a power cut came before it was deleted, say. Unless its instance has something better it
    may be all that is left: of a restore that failed, of a sleep that a power cut ended.
    """
    owner = next((record for record in records if record.id == manifest.instance_id), None)
    text, action = "Nothing refers to it.", partial(discard, store.paths, paths.dir)
    if not store.paths.instance(manifest.instance_id).dir.exists():
        return _Found(text=text, mend="It is deleted: its instance is gone.", action=action)
    back = f"ramet restore {naming.owner_name(store, manifest)} --snapshot {manifest.id}"
    if owner and _has_better(store, observe.observed(store, owner), manifest, parents):
        return _Found(text=text, mend=f"It is deleted, unless you go back to it before: {back}", action=action)
    return _Found(text=text, mend=f"Go back to it ({back}), or delete it (ramet snapshot rm {manifest.id}).")


def _has_better(store: Store, now: InstanceRecord, manifest: Manifest, parents: _Parents) -> bool:
    """Whether an instance is sure not to need that snapshot: it lives; it sleeps, on one that is whole (it had to run before it
    could publish a newer one, and then its record says so); or it has one that is whole and was derived from that.

    No clock is asked which is newer: it may have been set back.
    """
    if observe.is_live(now):
        return True
    whole = [one for one in now.references if _is_whole(store, one)]
    if now.state is State.STANDBY and now.snapshot in whole:
        return True
    return any(manifest.id in _ancestors(one, parents) for one in whole)


def _ancestors(snapshot_id: str, parents: _Parents) -> set[str]:
    found: set[str] = set()
    parent = parents.get(snapshot_id)
    while parent is not None and parent not in found:
        found.add(parent)
        parent = parents.get(parent)
    return found


def _is_whole(store: Store, snapshot_id: str) -> bool:
    paths = store.paths.snapshot(snapshot_id)
    try:
        manifests.check_files(paths, manifests.load(paths))
    except (OSError, RametError):  # it is told of that one
        return False
    return True


def _parents_of(store: Store, snapshots: Sequence[str]) -> _Parents:
    """What each was derived from. Looked at before anything is mended: a chain is not followed past one that was deleted."""
    found: dict[str, str | None] = {}
    for snapshot_id in snapshots:
        with suppress(OSError, RametError):  # it is told of that one
            found[snapshot_id] = manifests.load(store.paths.snapshot(snapshot_id)).parent
    return found


def _is_shared(path: Path, manifest: Manifest | None) -> bool:
    """Whether forks may read it, in the group of the instance that it was taken of; a lost manifest leaves that open."""
    groups = USERS if manifest is None else (user_number(manifest.instance_id),)
    return path.name in SHARED_BY_FORKS and path.lstat().st_gid in groups


def _loose(path: Path, mode: int, *also: int) -> Iterator[_Found]:
    """Whether others may do more with a file of ours than they must."""
    status = path.lstat()
    now = stat.S_IMODE(status.st_mode)
    if status.st_uid in USERS:
        yield _Found(
            text=f"{path.name} belongs to a VMM, whose start was cut short.",
            mend="It is made ours again.",
            action=partial(_take_back, path),
        )
    elif status.st_uid != os.geteuid():
        yield _Found(text=f"{path.name} belongs to uid {status.st_uid}.", mend=f"chown it: {path}")
    if now not in (mode, *also):
        yield _Found(
            text=f"{path.name} is {now:04o}, not {mode:04o}.",
            mend="Its mode is set.",
            action=partial(_set_mode, path, mode),
        )


def _take_back(path: Path) -> None:
    with host_errors(f"take {path} back"):
        os.chown(path, os.geteuid(), os.getegid(), follow_symlinks=False)


def _set_mode(path: Path, mode: int) -> None:
    with host_errors(f"set the mode of {path}"):
        path.chmod(mode)


def _names(store: Store) -> Iterator[_Object]:
    for what, directory, place in (
        ("instance", store.paths.instance_names, store.paths.instances),
        ("snapshot", store.paths.snapshot_names, store.paths.snapshots),
    ):
        for entry in sorted(directory.iterdir()):
            look = partial(_name, store, directory, entry.name, place)
            yield _Object(f"the {what} name {entry.name!r}", f"check-{what}-{entry.name}", look)


def _name(store: Store, directory: Path, name: str, place: Path) -> list[_Found]:
    try:
        target = names.lookup(directory, name)
    except (CorruptError, HostError) as err:
        return [_Found(text=err.message, mend=err.hint or "Look at that file, and at its file system.")]
    if target is None:
        return []
    if not (place / target).is_dir():
        release = partial(names.release, directory, name, target)
        return [_Found(text=f"It leads to {target}, which is not there.", mend="The name is freed.", action=release)]
    return _second_name(store, name, target) if directory == store.paths.instance_names else []


def _second_name(store: Store, name: str, instance_id: str) -> list[_Found]:
    """An instance has one name; a second one is what a renaming has left that was cut short."""
    try:
        record = store.read(instance_id)
    except (NotFoundError, CorruptError):
        return []  # it is told of the instance
    if record.name == name or record.pending is not None:
        return []  # what is pending is told of the instance, and frees it
    return [
        _Found(
            text=f"It leads to {instance_id}, which is called {record.name}.",
            mend="The name is freed.",
            action=partial(_free_second_name, store, name, instance_id),
        )
    ]


def _free_second_name(store: Store, name: str, instance_id: str) -> None:
    """Unless it has become its name meanwhile."""
    with locked(store.paths.locks, f"instance-{instance_id}", timeout_s=LOCK_S), suppress(NotFoundError):
        if store.read(instance_id).name != name:
            names.release(store.paths.instance_names, name, instance_id)


def _vmm(store: Store, instance_id: str, vmm: VmmProcess) -> list[_Found]:
    if not process.is_alive(vmm):
        return []
    try:
        record = store.read(instance_id)
    except NotFoundError:
        record = None
    except CorruptError:
        return []  # nobody knows; it is told of the instance
    if record is not None and record.vmm == vmm:
        return []
    return [
        _Found(
            text=f"A VMM of instance {damaged.instance_label(store, instance_id)} that its record does not know.",
            mend="It is killed.",
            action=partial(process.kill_and_wait, vmm),
        )
    ]
