"""snapshot check and restore --verified: is a snapshot what was published? Memory and disk are compared with their sums, the
device state with its SHA-256, the manifest with its seal.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ramet.errors import CorruptError, NotFoundError, host_errors
from ramet.instances.context import Store
from ramet.linux import procfs
from ramet.model import PAGE_BYTES, Manifest, SnapshotCheck, SnapshotDamage, SnapshotFile, VmmProcess
from ramet.paths import SnapshotPaths
from ramet.snapshots import manifest as manifests
from ramet.snapshots import sums
from ramet.store import names
from ramet.store.layout import is_id

TOLD_EVERY_S = 0.2
OTHERS = "`ramet snapshot check` looks at all snapshots; `ramet snapshot ls` shows which others there are."


def check(store: Store, wanted: Sequence[str]) -> list[SnapshotCheck]:
    """Look at snapshots, by name or id; at all of them if none is named.

    Raises:
        NotFoundError: if a named one does not exist; none was looked at.
        HostError: if a file cannot be read.
    """
    if not wanted:
        return list(_all(store))
    found = []
    for snapshot_id in [store.find_snapshot(text) for text in wanted]:
        with store.reading(snapshot_id) as paths:
            found.append(_check_one(store, paths))
    return found


def _all(store: Store) -> Iterator[SnapshotCheck]:
    for directory in sorted(store.paths.snapshots.iterdir()):
        if not is_id(directory.name):
            continue  # not ours: `doctor --store` tells of it
        try:
            with store.reading(directory.name) as paths:
                yield _check_one(store, paths)
        except NotFoundError:
            continue  # removed meanwhile


def _check_one(store: Store, paths: SnapshotPaths) -> SnapshotCheck:
    began = time.monotonic()
    called = tuple(
        name for name, target in names.all_names(store.paths.snapshot_names).items() if target == paths.dir.name
    )
    damage: list[SnapshotDamage] = []
    read_bytes = 0
    try:
        manifest = manifests.load(paths)
    except CorruptError as err:
        damage.append(SnapshotDamage(file=paths.manifest.name, text=err.message))
    else:
        for path, expected in manifests.files(paths, manifest):
            try:
                manifests.check_file(path, expected, manifest.id)
                if path == paths.vmstate:
                    manifests.check_device_state(paths, manifest)
            except CorruptError as err:
                damage.append(SnapshotDamage(file=path.name, text=err.message))
                continue
            read_bytes += path.stat().st_blocks * 512
            if path == paths.vmstate:
                continue
            sums_path = paths.memory_sums if path == paths.memory else paths.disk_sums
            with _telling(store, f"{called[0] if called else manifest.id}: {path.name}", path) as progress:
                damage += _damage_of(path, sums_path, expected, progress)
    return SnapshotCheck(
        id=paths.dir.name,
        names=called,
        whole=not damage,
        damage=tuple(damage),
        read_bytes=read_bytes,
        duration_s=time.monotonic() - began,
    )


@contextmanager
def held_intact(
    snapshot: SnapshotPaths, manifest: Manifest, *, memory: Path, disk: Path
) -> Iterator[Callable[[VmmProcess], None]]:
    """Open the files that a VMM is about to load, the snapshot's own or derivations of them, compare them with the snapshot's
    sums by those descriptors, and hold them. Yields what makes sure, once the VMM has loaded, that it uses these (H18).

    Raises:
        CorruptError: naming the pages that differ; or, from what is yielded, if another file was put in the place of one.
        HostError: if a file cannot be read.
    """
    with ExitStack() as held, host_errors(f"check {memory} and {disk}"):
        fds = {}
        for path, sums_path, expected in (
            (memory, snapshot.memory_sums, manifest.memory),
            (disk, snapshot.disk_sums, manifest.disk),
        ):
            fds[path] = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            held.callback(os.close, fds[path])
            damage = _compare(fds[path], path, sums_path, expected, lambda _count: None)
            if damage:
                told = " ".join(f"{one.file}: {one.text}" for one in damage)
                raise CorruptError(f"Snapshot {manifest.id} is not what was published. {told}", hint=OTHERS)

        def require_used(vmm: VmmProcess) -> None:
            manifests.check_device_state(snapshot, manifest)  # once more: the VMM has read it since
            if not procfs.mappings_of_file(vmm.pid, Path(f"/proc/self/fd/{fds[memory]}")):
                raise CorruptError(
                    f"The VMM does not map the file that was checked: {memory} was replaced.", hint=OTHERS
                )
            if not procfs.descriptors_of_file(vmm.pid, Path(f"/proc/self/fd/{fds[disk]}")):
                raise CorruptError(f"The VMM does not use the file that was checked: {disk} was replaced.", hint=OTHERS)

        yield require_used


def require_intact(snapshot: SnapshotPaths, manifest: Manifest) -> None:
    """Compare a snapshot's own files with its sums.

    Raises:
        CorruptError: naming the pages that differ.
        HostError: if a file cannot be read.
    """
    with held_intact(snapshot, manifest, memory=snapshot.memory, disk=snapshot.disk):
        pass


def _damage_of(
    path: Path, sums_path: Path, expected: SnapshotFile, progress: Callable[[int], object]
) -> list[SnapshotDamage]:
    with host_errors(f"read {path}"):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            # What the page cache holds may be right where the disk is wrong (H64).
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            return _compare(fd, path, sums_path, expected, progress)
        finally:
            os.close(fd)


def _compare(
    fd: int, path: Path, sums_path: Path, expected: SnapshotFile, progress: Callable[[int], object]
) -> list[SnapshotDamage]:
    with host_errors(f"compare {path} with {sums_path}"):
        try:
            sums_fd = os.open(sums_path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return [
                SnapshotDamage(file=sums_path.name, text="It is lost: nobody can tell whether what it is of is whole.")
            ]
        try:
            stop = threading.Event()
            try:
                found = sums.check(fd, sums_fd, expected.root or "", stop=stop, progress=progress)
            except BaseException:
                stop.set()
                raise
        finally:
            os.close(sums_fd)
    return list(_in_words(found, path.name, sums_path.name))


def _in_words(found: sums.Damage, name: str, sums_name: str) -> Iterator[SnapshotDamage]:
    if found.pages:
        first, last = found.pages[0].start * PAGE_BYTES, found.pages[0].stop * PAGE_BYTES - 1
        text = f"{sums.in_words(found.pages)} changed; the first bytes {first} to {last}."
        yield SnapshotDamage(file=name, text=text, pages=_pairs(found.pages))
    if found.unknown:
        text = f"It is damaged: nobody can tell whether these are whole: {sums.in_words(found.unknown)} of {name}."
        yield SnapshotDamage(file=sums_name, text=text, pages=_pairs(found.unknown))
    if found.root_differs:
        yield SnapshotDamage(
            file=sums_name, text=f"It is not the one that the manifest knows: it, or {name}, is damaged or another's."
        )


def _pairs(pages: Sequence[range]) -> tuple[tuple[int, int], ...]:
    return tuple((one.start, one.stop) for one in pages)


@contextmanager
def _telling(store: Store, what: str, path: Path) -> Iterator[Callable[[int], object]]:
    """Says how much has been read, a few times a second."""
    total = max(path.stat().st_blocks * 512, 1)
    done, told_at = 0, 0.0

    def progress(count: int) -> None:
        nonlocal done, told_at
        done += count
        if time.monotonic() - told_at > TOLD_EVERY_S:
            told_at = time.monotonic()
            store.say(f"{what}, {min(done * 100 // total, 100)} %")

    store.say(what)
    yield progress
