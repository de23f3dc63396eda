"""snapshot check and restore --verified: is a snapshot what was published? Memory and disk are compared with their sums, the
device state with its SHA-256, the manifest with its seal.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ramet.errors import ConfigError, CorruptError, HostError, NotFoundError, host_errors
from ramet.instances import damaged, naming
from ramet.instances.context import Store
from ramet.linux import procfs
from ramet.model import PAGE_BYTES, Manifest, SnapshotCheck, SnapshotDamage, SnapshotFile, State, VmmProcess
from ramet.pages import in_words
from ramet.paths import SnapshotPaths
from ramet.snapshots import manifest as manifests
from ramet.snapshots import sums
from ramet.store import names
from ramet.store.layout import is_id

TOLD_EVERY_S = 0.2
READING = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
OTHERS = "`ramet snapshot check` says which snapshots are whole."
INSTEAD = (
    OTHERS + " To wake it from this one as it is, leave out --verified; "
    "to keep its disk alone, if that is whole: ramet stop {name} --discard-memory."
)


def check(store: Store, wanted: Sequence[str]) -> list[SnapshotCheck]:
    """Look at snapshots, by name or id; at all of them if none is named. Whatever cannot be read is damage; no snapshot is kept
    from being deleted while it is read.

    Raises:
        NotFoundError: if a named one does not exist; none was looked at.
    """
    if wanted:
        return [_check_one(store, snapshot_id) for snapshot_id in [_find(store, text) for text in wanted]]
    found = []
    for directory in sorted(store.paths.snapshots.iterdir()):
        if is_id(directory.name):  # what is not ours `doctor --store` tells of
            with suppress(NotFoundError):  # removed meanwhile
                found.append(_check_one(store, directory.name))
    return found


def _find(store: Store, text: str) -> str:
    try:
        return store.find_snapshot(text)
    except NotFoundError as err:
        meant = _of_instance(store, text)
        raise NotFoundError(err.message, hint=meant or err.hint) from err


def _of_instance(store: Store, text: str) -> str | None:
    """Which snapshot somebody may mean who names an instance; None: it is none."""
    try:
        record = store.read(store.find(text))
    except (NotFoundError, CorruptError, ConfigError):
        return None
    if record.snapshot is None:
        return f"{text} is an instance, and has no snapshot: `ramet standby` and `ramet snapshot create` take one."
    how = "sleeps on" if record.state is State.STANDBY else "rolls back to"
    return f"{text} is an instance; it {how} snapshot {record.snapshot}: ramet snapshot check {record.snapshot}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    """Memory or disk of a snapshot, and its sums, by descriptors."""

    name: str
    fd: int
    sums_name: str
    sums_fd: int
    root: str
    allocated_bytes: int


def _check_one(store: Store, snapshot_id: str) -> SnapshotCheck:
    began = time.monotonic()
    damage: list[SnapshotDamage] = []
    with ExitStack() as held:
        with store.reading(snapshot_id) as paths:
            called = tuple(names.names_of(store.paths.snapshot_names, snapshot_id))
            opened: list[_Opened] = []
            mend = None
            try:
                manifest = manifests.load(paths)
            except (CorruptError, HostError) as err:
                text = f"{err.message} Without it nothing else of the snapshot could be looked at."
                damage.append(SnapshotDamage(file=paths.manifest.name, text=text))
                of, mend = _known_as(store, snapshot_id), damaged.way_out(store, snapshot_id, err)
            else:
                of = naming.owner_name(store, manifest)
                opened += _open_all(paths, manifest, damage, held)
        for one in opened:
            try:
                damage += _compare(one, _telling(store, f"{called[0] if called else snapshot_id}: {one.name}", one))
            except HostError as err:
                damage.append(SnapshotDamage(file=one.sums_name, text=err.message))
        return SnapshotCheck(
            id=snapshot_id,
            names=called,
            instance_name=of,
            whole=not damage,
            damage=tuple(damage),
            read_bytes=sum(one.allocated_bytes for one in opened),
            duration_s=time.monotonic() - began,
            mend=mend,
        )


def _known_as(store: Store, snapshot_id: str) -> str | None:
    """The instance that sleeps on a snapshot: it was taken of it, or of what that was forked from."""
    return next((one.name for one in damaged.users_of(store, snapshot_id) if one.snapshot == snapshot_id), None)


def _open_all(
    paths: SnapshotPaths, manifest: Manifest, damage: list[SnapshotDamage], held: ExitStack
) -> Iterator[_Opened]:
    """Open what is to be read; whatever cannot be goes to ``damage``."""
    for path, expected in manifests.files(paths, manifest):
        try:
            manifests.check_file(path, expected, manifest.id)
            if path == paths.vmstate:
                manifests.check_device_state(paths, manifest)
            else:
                yield _open(path, _sums_of(paths, path), expected, held, name=path.name, past_the_cache=True)
        except _DamagedSumsError as err:
            damage.append(SnapshotDamage(file=_sums_of(paths, path).name, text=err.message))
        except (CorruptError, HostError) as err:
            damage.append(SnapshotDamage(file=path.name, text=err.message))


def _sums_of(paths: SnapshotPaths, path: Path) -> Path:
    return paths.memory_sums if path == paths.memory else paths.disk_sums


class _DamagedSumsError(CorruptError):
    """Of the sums, and not of what they are of."""


def _open(
    path: Path, sums_path: Path, expected: SnapshotFile, held: ExitStack, *, name: str, past_the_cache: bool
) -> _Opened:
    """``name``: what it is called, whatever its path."""
    with host_errors(f"open {path}"):
        # A copy in RAM has no other path than a descriptor's, which is a link.
        following = os.O_NOFOLLOW if path.parent == Path("/proc/self/fd") else 0
        fd = _open_past_the_cache(path) if past_the_cache else os.open(path, READING & ~following)
        held.callback(os.close, fd)
        allocated_bytes = os.fstat(fd).st_blocks * 512
    try:
        sums_fd = os.open(sums_path, READING | os.O_NONBLOCK)  # a FIFO would wait for a writer
    except FileNotFoundError as err:
        raise _DamagedSumsError("It is lost: nobody can tell whether what it is of is whole.") from err
    except OSError as err:
        raise _DamagedSumsError(f"It cannot be opened: {err.strerror}.") from err
    held.callback(os.close, sums_fd)
    if not stat.S_ISREG(os.fstat(sums_fd).st_mode):
        raise _DamagedSumsError("It is not a regular file.")
    return _Opened(
        name=name,
        fd=fd,
        sums_name=sums_path.name,
        sums_fd=sums_fd,
        root=expected.root or "",
        allocated_bytes=allocated_bytes,
    )


def _open_past_the_cache(path: Path) -> int:
    """What the page cache holds may be right where the disk is wrong (H64), and keeps what a VMM maps."""
    try:
        return os.open(path, READING | os.O_DIRECT)
    except OSError as err:
        if err.errno != errno.EINVAL:
            raise
    fd = os.open(path, READING)  # no O_DIRECT on this file system
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    return fd


@contextmanager
def held_intact(
    snapshot: SnapshotPaths, manifest: Manifest, *, instead: str, memory: Path, disk: Path
) -> Iterator[Callable[[VmmProcess], None]]:
    """Open the files that a VMM is about to load, the snapshot's own or derivations of them, compare them with the snapshot's
    sums by those descriptors, and hold them. Yields what makes sure, once the VMM has loaded, that it uses these (H18).
    ``instead``: the hint of what is to be done about damage.

    Raises:
        CorruptError: naming the pages that differ; or, from what is yielded, if another file was put in the place of one.
        HostError: if a file cannot be read.
    """
    with ExitStack() as held:
        fds = {}
        for path, called, sums_path, expected in (
            (memory, snapshot.memory.name, snapshot.memory_sums, manifest.memory),
            (disk, snapshot.disk.name, snapshot.disk_sums, manifest.disk),
        ):
            try:
                one = _open(path, sums_path, expected, held, name=called, past_the_cache=False)
            except _DamagedSumsError as err:
                raise CorruptError(
                    f"Snapshot {manifest.id} cannot be checked: {sums_path.name}: {err.message}", hint=instead
                ) from err
            fds[path] = one.fd
            damage = _compare(one, lambda _count: None)
            if damage:
                told = " ".join(f"{part.file}: {part.text}" for part in damage)
                raise CorruptError(f"Snapshot {manifest.id} is not what was published. {told}", hint=instead)

        def require_used(vmm: VmmProcess) -> None:
            manifests.check_device_state(snapshot, manifest)  # once more: the VMM has read it since
            with host_errors("look at what the VMM uses"):
                maps = procfs.mappings_of_file(vmm.pid, Path(f"/proc/self/fd/{fds[memory]}"))
                opened = procfs.descriptors_of_file(vmm.pid, Path(f"/proc/self/fd/{fds[disk]}"))
            if not maps:
                raise CorruptError(
                    f"The VMM does not map the file that was checked: {memory} was replaced.", hint=instead
                )
            if not opened:
                raise CorruptError(
                    f"The VMM does not use the file that was checked: {disk} was replaced.", hint=instead
                )

        yield require_used


def require_intact(snapshot: SnapshotPaths, manifest: Manifest) -> None:
    """Compare a snapshot's own files with its sums.

    Raises:
        CorruptError: naming the pages that differ.
        HostError: if a file cannot be read.
    """
    with held_intact(snapshot, manifest, instead=OTHERS, memory=snapshot.memory, disk=snapshot.disk):
        pass


def _compare(one: _Opened, progress: Callable[[int], object]) -> list[SnapshotDamage]:
    with host_errors(f"compare {one.name} with {one.sums_name}"):
        found = sums.check(one.fd, one.sums_fd, one.root, progress=progress)
    return list(_in_words(found, one.name, one.sums_name))


def _in_words(found: sums.Damage, name: str, sums_name: str) -> Iterator[SnapshotDamage]:
    if found.pages:
        first, last = found.pages[0].start * PAGE_BYTES, found.pages[0].stop * PAGE_BYTES - 1
        which = "the first of them " if len(found.pages) > 1 else ""
        text = f"{in_words(found.pages)} changed ({which}at bytes {first} to {last})."
        yield SnapshotDamage(file=name, text=text, pages=_pairs(found.pages))
    if found.unknown:
        text = f"It is damaged: nobody can tell whether these are whole: {in_words(found.unknown)} of {name}."
        yield SnapshotDamage(file=sums_name, text=text, pages=_pairs(found.unknown))
    if found.unreadable:
        text = f"The disk does not give it: somewhere in {in_words(found.unreadable)}."
        yield SnapshotDamage(file=name, text=text, pages=_pairs(found.unreadable))
    if found.root_differs:
        yield SnapshotDamage(
            file=sums_name, text=f"It is not the one that the manifest knows: it, or {name}, is damaged or another's."
        )


def _pairs(pages: Sequence[range]) -> tuple[tuple[int, int], ...]:
    return tuple((one.start, one.stop) for one in pages)


def _telling(store: Store, what: str, one: _Opened) -> Callable[[int], object]:
    """What says how much has been read, a few times a second."""
    total = max(one.allocated_bytes, 1)
    done, told_at = 0, 0.0

    def progress(count: int) -> None:
        nonlocal done, told_at
        done += count
        if time.monotonic() - told_at > TOLD_EVERY_S:
            told_at = time.monotonic()
            store.say(f"{what}, {min(done * 100 // total, 100)} %")

    store.say(what)
    return progress
