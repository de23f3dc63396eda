"""The store as the verbs see it: records, names, locks and references."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ramet import config
from ramet.errors import (
    ConfigError,
    CorruptError,
    HostError,
    InUseError,
    LockedError,
    NotFoundError,
    RametError,
    host_errors,
)
from ramet.hypervisors.base import Driver, Hardware
from ramet.hypervisors.firecracker.driver import FirecrackerDriver
from ramet.hypervisors.qemu.driver import QemuDriver
from ramet.model import INSTANCE_FORMAT_VERSION, Accelerator, Hypervisor, InstanceRecord, VmmProcess
from ramet.paths import InstancePaths, SnapshotPaths, StorePaths
from ramet.signals import signals_held
from ramet.spelling import did_you_mean, in_short
from ramet.store import atomic, chores, names
from ramet.store.chores import Chore, Kind
from ramet.store.layout import discard, is_id, open_store
from ramet.store.locks import DEFAULT_TIMEOUT_S, locked

log = logging.getLogger("ramet.store")
Progress = Callable[[str], None]
COLLECT_TIMEOUT_S = 5.0
"""How long a snapshot that nothing needs any more is waited for: signals are held meanwhile."""


class Store:
    """One open store. Cheap to make; holds no lock and no descriptor between calls."""

    def __init__(
        self, home: Path | None = None, *, progress: Progress | None = None, paths: StorePaths | None = None
    ) -> None:
        """``paths``: of a store that is open already."""
        self.paths = paths or _open(home or config.default_home())
        self._publishing: set[str] = set()
        self._collected_later: set[str] = set()
        self._progress = progress
        self.note: str | None = None
        """What a verb wants to add to its success, such as "already running"."""

    def say(self, text: str) -> None:
        """Report progress, where someone listens."""
        if self._progress:
            self._progress(text)

    def silent(self) -> Store:
        """The same store, for work that is one of many pieces: it says nothing."""
        return Store(paths=self.paths)

    def driver(self, hypervisor: Hypervisor) -> Driver:
        """The driver of a hypervisor."""
        if hypervisor is Hypervisor.QEMU:
            return QemuDriver()
        return FirecrackerDriver()

    # -- records ----------------------------------------------------------------------------------------------

    def find(self, name: str) -> str:
        """The id of the instance called ``name`` (or with that id).

        Raises:
            ConfigError: if ``name`` cannot be a name.
            NotFoundError: if there is none.
        """
        config.check_name(name)
        found = names.lookup(self.paths.instance_names, name)
        if found is None and is_id(name) and self.paths.instance(name).dir.is_dir():
            found = name
        if found is None or not self.paths.instance(found).dir.is_dir():
            hint = _instead(name, self.paths.instance_names, listed_by="ramet ls")
            if self.paths.snapshot(name).dir.is_dir() or names.lookup(self.paths.snapshot_names, name) is not None:
                hint = f"There is a snapshot of that name: write snapshot:{name}."
            raise NotFoundError(f"There is no instance {name!r}.", hint=hint)
        return found

    def read(self, instance_id: str) -> InstanceRecord:
        """The record of an instance, as it is on disk.

        Raises:
            NotFoundError: if it is gone.
            CorruptError: if it cannot be believed, or is lost: a directory comes with its record, and goes with it.
        """
        path = self.paths.instance(instance_id).record
        try:
            record = self._read(path, instance_id)
        except NotFoundError:
            if not path.parent.is_dir():
                raise
            try:
                record = self._read(path, instance_id)  # it may have come meanwhile
            except NotFoundError as err:
                hint = f"Restore {path} from a backup, or give the instance up: ramet rm --force {instance_id}"
                raise CorruptError(f"{path.parent} has no record.", hint=hint) from err
        if record.id != instance_id:
            raise CorruptError(f"{path} is the record of {record.id!r}: files were moved by hand.")
        return record

    def _read(self, path: Path, instance_id: str) -> InstanceRecord:
        try:
            return atomic.read_json(path, InstanceRecord, format_version=INSTANCE_FORMAT_VERSION)
        except FileNotFoundError as err:
            raise NotFoundError(f"There is no instance {instance_id!r}.", hint="`ramet ls` lists them.") from err

    def records(self) -> list[InstanceRecord]:
        """All records, oldest first; an instance that vanishes meanwhile is left out.

        Raises:
            CorruptError: if one cannot be believed: what it refers to is unknown.
        """
        found, damaged = self.readable_records()
        for err in damaged.values():
            raise err
        return found

    def readable_records(self) -> tuple[list[InstanceRecord], dict[str, CorruptError]]:
        """The records that can be believed, oldest first, and by id why the others cannot."""
        found: list[InstanceRecord] = []
        damaged: dict[str, CorruptError] = {}
        for directory in self.paths.instances.iterdir():
            if not is_id(directory.name):
                continue  # not ours
            try:
                found.append(self.read(directory.name))
            except NotFoundError:
                continue
            except CorruptError as err:
                damaged[directory.name] = err
        return sorted(found, key=lambda record: (record.created_at_unix_s, record.id)), damaged

    def hardware(self, record: InstanceRecord) -> Hardware:
        accelerator = record.vmm_build.accelerator if record.vmm_build else Accelerator.TCG
        return Hardware(memory_mib=record.memory_mib, cpus=record.cpus, accelerator=accelerator)

    # -- snapshots --------------------------------------------------------------------------------------------

    def find_snapshot(self, text: str) -> str:
        """The id of a snapshot by name or id.

        Raises:
            NotFoundError: if there is none.
        """
        text = text.removeprefix("snapshot:")
        config.check_name(text, what="snapshot")
        found = names.lookup(self.paths.snapshot_names, text) or (text if is_id(text) else None)
        if found is None or not self.paths.snapshot(found).dir.is_dir():
            hint = _instead(text, self.paths.snapshot_names, listed_by="ramet snapshot ls")
            raise NotFoundError(f"There is no snapshot {text!r}.", hint=hint)
        return found

    @contextmanager
    def reading(self, snapshot_id: str) -> Iterator[SnapshotPaths]:
        """Keep a snapshot from being deleted while its files are read or a reference to it is added.

        Raises:
            NotFoundError: if it is gone.
        """
        with locked(self.paths.locks, f"snapshot-{snapshot_id}", exclusive=False):
            paths = self.paths.snapshot(snapshot_id)
            if not paths.dir.is_dir():
                raise NotFoundError(f"There is no snapshot {snapshot_id!r}.", hint="`ramet snapshot ls` lists them.")
            yield paths

    @contextmanager
    def publishing(self, snapshot_id: str, *, may_be_unneeded: bool = False) -> Iterator[None]:
        """Keep a snapshot that is published in the block from being deleted until something refers to it. If the block fails
        before anything does, the snapshot goes; ``may_be_unneeded``: also if the block ends well and nothing does.
        """
        is_needed = False
        with self.even_if_killed(Kind.COLLECT, snapshot_id) as chore:
            self._publishing.add(snapshot_id)
            try:
                with locked(self.paths.locks, f"snapshot-{snapshot_id}", exclusive=False):
                    yield
                is_needed = not may_be_unneeded
            finally:
                self._publishing.discard(snapshot_id)
                if not is_needed:
                    with signals_held():
                        self.collect(snapshot_id, chore=chore)

    def referrers(self, records: Sequence[InstanceRecord]) -> dict[str, Referrers]:
        """Who depends on each snapshot: those of these that sleep on it, map it, or diff against it; and its names."""
        instances: dict[str, list[str]] = {}
        for record in records:
            roles: dict[str, list[str]] = {}
            for snapshot_id, role in (
                (record.snapshot, "sleeps on it" if record.vmm is None else "rolls back to it"),
                (record.mapped_snapshot, "maps its memory"),
                (record.diff_base, "takes its next diff against it"),
            ):
                if snapshot_id:
                    roles.setdefault(snapshot_id, []).append(role)
            for snapshot_id, parts in roles.items():
                if record.pool is not None:
                    parts.append(f"waits in the pool of {record.pool_source}")
                instances.setdefault(snapshot_id, []).append(f"instance {record.name} ({', '.join(parts)})")
        called: dict[str, list[str]] = {}
        for name, snapshot_id in names.all_names(self.paths.snapshot_names).items():
            called.setdefault(snapshot_id, []).append(name)
        return {
            snapshot_id: Referrers(
                instances=tuple(instances.get(snapshot_id, ())), names=tuple(called.get(snapshot_id, ()))
            )
            for snapshot_id in instances.keys() | called.keys()
        }

    def is_needed_by_others(self, snapshot_id: str, instance_id: str) -> bool:
        """Whether a name, or an instance other than this one, refers to the snapshot.

        Raises:
            CorruptError: if a record cannot be read.
        """
        others = [record for record in self.records() if record.id != instance_id]
        referred = {one for record in others for one in record.references}
        return snapshot_id in referred or snapshot_id in names.all_names(self.paths.snapshot_names).values()

    def delete_snapshot(self, snapshot_id: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Delete a snapshot that nothing references, and that no other command reads for longer than ``timeout_s``.

        Raises:
            InUseError: naming the dependents; nothing was touched.
        """
        with self.deleting(snapshot_id, timeout_s=timeout_s):
            self.delete_locked(snapshot_id)

    def deleting(self, snapshot_id: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> AbstractContextManager[None]:
        """Keep everybody from reading a snapshot, or referring to it, for the block.

        Raises:
            LockedError: if another command reads it for longer than ``timeout_s``.
        """
        return locked(self.paths.locks, f"snapshot-{snapshot_id}", timeout_s=timeout_s)

    def delete_locked(self, snapshot_id: str) -> None:
        """Delete a snapshot that nothing references, under ``deleting``.

        Raises:
            InUseError: naming the dependents; nothing was touched.
        """
        records = self.records()
        referrers = self.referrers(records).get(snapshot_id)
        if referrers is not None:
            dependents = referrers.in_words
            waiting = {one.pool_source for one in records if one.pool is not None and snapshot_id in one.references}
            empties = "".join(
                f" `ramet pool {source} --size 0` removes those in a pool." for source in sorted(waiting, key=str)
            )
            raise InUseError(
                f"Snapshot {snapshot_id} is in use by {in_short(dependents)}.",
                dependents=dependents,
                hint=f"Remove those first; the snapshot goes with the last of them.{empties}",
            )
        directory = self.paths.snapshot(snapshot_id).dir
        if directory.is_dir():
            discard(self.paths, directory)

    @contextmanager
    def collecting(self, record: InstanceRecord) -> Iterator[None]:
        """When the block has ended, in whatever way, delete those snapshots of ``record`` that nothing references any more."""
        ids = record.references
        with self.ended_if_killed(Kind.COLLECT, *ids) as chore:
            try:
                yield
            finally:
                with signals_held():
                    self.collect(*ids, chore=chore)

    @contextmanager
    def collecting_later(self, snapshot_id: str) -> Iterator[None]:
        """For a block that reads a snapshot, and gives up references to it: where it would be deleted, which would wait for that
        reading, it is left for the end of the block. It goes then if nothing refers to it.
        """
        with self.ended_if_killed(Kind.COLLECT, snapshot_id) as chore:
            self._publishing.add(snapshot_id)
            try:
                yield
            finally:
                self._publishing.discard(snapshot_id)
                if snapshot_id in self._collected_later:
                    self._collected_later.discard(snapshot_id)
                    with signals_held():
                        self.collect(snapshot_id, chore=chore)

    def even_if_killed(self, kind: Kind, *ids: str | None) -> AbstractContextManager[Chore]:
        """If the block is killed, the next command does this for these, and for what is added to what it yields (``tidy.py``)."""
        return chores.noted(self.paths.locks, kind, *ids, durable=kind is Kind.REMOVE)

    def ended_if_killed(self, kind: Kind, *ids: str | None) -> AbstractContextManager[Chore | None]:
        """The same for a block that removes them: a full disk keeps it from nothing; if it fails, the next command ends it."""
        return chores.noted_if_there_is_room(self.paths.locks, kind, *ids)

    def collect(self, *snapshot_ids: str | None, chore: Chore | None) -> None:
        """Delete those snapshots that nothing references any more, and keep the others, and those in ``publishing`` here: that
        would wait for itself.

        What a verb has done is done: a snapshot that cannot be deleted now is left, with a warning, and the ``chore`` that it is
        noted in with it: the next command tries again. None: there was no room for one, and it stays in ``snapshot ls``.
        """
        needed: Container[str] = ()
        with suppress(CorruptError, HostError):  # then it is seen below, one by one
            # Whoever gives up a reference does so before: the last one finds none here, and nobody else waits for readers.
            needed = self.referrers(self.readable_records()[0])
        for snapshot_id in dict.fromkeys(snapshot_ids):
            if snapshot_id is None or snapshot_id in needed:
                continue
            if snapshot_id in self._publishing:
                self._collected_later.add(snapshot_id)
                continue
            try:
                self.delete_snapshot(snapshot_id, timeout_s=COLLECT_TIMEOUT_S)
            except InUseError:
                continue
            except (LockedError, CorruptError) as err:
                # A restore may be reading it, and keep it if it fails; a record that is damaged may refer to it.
                log.warning("snapshot %s was left: %s %s", snapshot_id, err.message, _by_hand(snapshot_id))
            except HostError as err:
                log.warning("snapshot %s was left: %s %s", snapshot_id, err.message, _leave(snapshot_id, chore))


def _open(home: Path) -> StorePaths:
    """A place that somebody names is taken at their word only if its parent is there: a typing mistake makes no directories."""
    with host_errors(f"look for the store {home}"):
        missing = not home.parent.is_dir()
    if missing and home != config.unnamed_home():
        raise ConfigError(
            f"There is no directory {home.parent} for the store {str(home)!r}.",
            hint=f"Make it (mkdir -p {shlex.quote(str(home.parent))}), or name another place for the store.",
        )
    return open_store(home)


def _leave(snapshot_id: str, chore: Chore | None) -> str:
    """Leave what could not be deleted to the next command, or to the user: says to whom."""
    if chore is not None:
        with suppress(HostError):  # it is told to whom it is left then
            chore.leave(Kind.COLLECT, snapshot_id)
            return "The next command tries again."
    return _by_hand(snapshot_id)


def _by_hand(snapshot_id: str) -> str:
    return f"`ramet snapshot rm {snapshot_id}` deletes it."


def snapshot_of(record: InstanceRecord) -> str:
    """The id of the snapshot that a sleeping instance sleeps on.

    Raises:
        CorruptError: if its record has none.
    """
    if record.snapshot is None:
        raise CorruptError(f"{record.name!r} sleeps on no snapshot: its record is damaged.")
    return record.snapshot


def vmm_of(record: InstanceRecord) -> VmmProcess:
    """The VMM of a live instance.

    Raises:
        CorruptError: if its record has none.
    """
    if record.vmm is None:
        raise CorruptError(f"{record.name!r} has no VMM: its record is damaged.")
    return record.vmm


@dataclass(frozen=True, slots=True, kw_only=True)
class Referrers:
    """Who depends on a snapshot."""

    instances: tuple[str, ...] = ()
    """Each with how: "instance web (sleeps on it)"."""
    names: tuple[str, ...] = ()

    @property
    def in_words(self) -> tuple[str, ...]:
        return (*self.instances, *(f"name {name}" for name in self.names))


class Locked:
    """An instance under its exclusive lock: the only way to change its record."""

    def __init__(self, store: Store, record: InstanceRecord) -> None:
        self.store = store
        self.record = record

    @property
    def paths(self) -> InstancePaths:
        return self.store.paths.instance(self.record.id)

    @property
    def driver(self) -> Driver:
        return self.store.driver(self.record.hypervisor)

    def change(self, *, durable: bool = True, **fields: object) -> InstanceRecord:
        """Replace fields of the record, atomically. ``durable=False``: a power cut may bring the old ones back.

        Raises:
            HostError: if it could not be written; the record is as it was.
        """
        try:
            return self.put_back(msgspec.structs.replace(self.record, **fields), durable=durable)
        except HostError:
            self._take_back()
            raise

    def put_back(self, record: InstanceRecord, *, durable: bool = True) -> InstanceRecord:
        """Make ``record`` the instance's record: all of it, as ``change`` does with some.

        Raises:
            HostError: if it could not be written; the record is as it was.
        """
        with host_errors(f"record the state of {record.name!r}"):
            atomic.write_json(self.paths.record, record, durable=durable)
        self.record = record  # only what was written is believed
        return record

    def _take_back(self) -> None:
        """A write that failed in its last step, the fsync of the directory, has put the new record there all the same."""
        try:
            there = self.store.read(self.record.id)
            if there == self.record:
                return
            with ExitStack() as held:  # what it referred to may be gone by now: then it stays what it has become
                for one in {*self.record.references} - {*there.references}:
                    held.enter_context(self.store.reading(one))
                atomic.write_json(self.paths.record, self.record)
        except (OSError, RametError) as err:
            log.warning(
                "%s: its record may be the new one, though it could not be made durable, and not be put back: %s",
                self.record.name,
                err,
            )

    @contextmanager
    def pending(self, verb: str) -> Iterator[None]:
        """Mark that a verb is at work. The mark goes when the block succeeds; a failed or killed one leaves it, and the next
        command on the instance makes sure of its clean-up (``observe.settle``), which may have failed too.

        A host that crashes takes the VMM with it, so the mark need not be durable.
        """
        self.change(durable=False, pending=verb)
        yield
        if self.record.pending is not None:
            try:
                self.change(durable=False, pending=None)
            except HostError as err:  # it has happened all the same
                log.warning("%s: the next command tidies up after `%s`: %s", self.record.name, verb, err.message)


def _instead(name: str, directory: Path, *, listed_by: str) -> str:
    """What to do about a name that means nothing: a hint."""
    with host_errors(f"read {directory}"):
        known = [one for one in names.taken(directory) if one != name]  # that one leads nowhere
    return f"{did_you_mean(name, known)} `{listed_by}` lists them.".lstrip()
