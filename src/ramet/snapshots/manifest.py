"""Manifests: what a snapshot says about itself, and whether that can be believed and used here."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import msgspec

from ramet.errors import CorruptError, IncompatibleError, NotFoundError, host_errors
from ramet.model import MANIFEST_FORMAT_VERSION, MIB, UNSEALED, Manifest, SnapshotFile, VmmBuild
from ramet.paths import SnapshotPaths
from ramet.store import atomic

_LOST = "The snapshot cannot be restored. `ramet snapshot ls` shows what else there is."


def load(paths: SnapshotPaths) -> Manifest:
    """Read a published manifest.

    Raises:
        NotFoundError: if there is no such snapshot.
        CorruptError: if the manifest is damaged, of an unknown format, or another snapshot's.
    """
    if not paths.dir.is_dir():
        raise NotFoundError(f"There is no snapshot {paths.dir.name!r}.", hint="`ramet snapshot ls` lists them.")
    try:
        manifest = atomic.read_json(paths.manifest, Manifest, format_version=MANIFEST_FORMAT_VERSION)
        with host_errors(f"read {paths.manifest}"):
            found = paths.manifest.read_bytes()
    except FileNotFoundError as err:
        raise CorruptError(f"Snapshot {paths.dir.name} has lost its manifest.", hint=_LOST) from err
    unsealed = found.replace(manifest.seal.encode(), UNSEALED.encode(), 1)
    if hashlib.sha256(unsealed).hexdigest() != manifest.seal:
        raise CorruptError(f"{paths.manifest} is not what was published: its seal does not fit.", hint=_LOST)
    manifest = msgspec.structs.replace(manifest, seal=UNSEALED)
    if manifest.id != paths.dir.name:
        raise CorruptError(
            f"{paths.manifest} is the manifest of {manifest.id!r}: files were moved by hand.", hint=_LOST
        )
    return manifest


def write(path: Path, manifest: Manifest) -> None:
    """Write a manifest and its seal, durably."""
    atomic.write_atomic(path, sealed(atomic.json_of(manifest)))


def sealed(data: bytes) -> bytes:
    """The bytes of a manifest that has zeros for a seal, with their SHA-256 in its place: no flipped bit of it goes unnoticed."""
    return data.replace(UNSEALED.encode(), hashlib.sha256(data).hexdigest().encode(), 1)


def check_compatible(manifest: Manifest, build: VmmBuild) -> None:
    """Refuse, before any launch, what the VMM at hand cannot load (H61).

    Raises:
        IncompatibleError: naming each difference.
    """
    saved = manifest.vmm_build
    differences = [
        f"{what} was {was!r}, here it is {now!r}"
        for what, was, now in (
            ("the hypervisor", saved.hypervisor.value, build.hypervisor.value),
            ("its version", saved.version, build.version),
            ("the accelerator", saved.accelerator.value, build.accelerator.value),
            ("the machine", saved.machine, build.machine),
            ("the CPU model", saved.cpu_model, build.cpu_model),
            ("the device list", saved.devices, build.devices),
        )
        if was != now
    ]
    if differences:
        raise IncompatibleError(
            f"Snapshot {manifest.id} cannot be loaded here: {'; '.join(differences)}.",
            hint="Restore it with the VMM that saved it, or boot its disk: `ramet stop NAME --discard-memory`.",
        )


def check_files(paths: SnapshotPaths, manifest: Manifest) -> None:
    """Refuse files that are not what was published: other sizes, links, or a device state that changed.

    Raises:
        CorruptError: naming the file and the difference.
    """
    if manifest.memory.size_bytes != manifest.memory_mib * MIB:
        raise CorruptError(
            f"Snapshot {manifest.id} says its memory has {manifest.memory.size_bytes} bytes, "
            f"and its guest {manifest.memory_mib} MiB.",
            hint=_LOST,
        )
    for path, expected in files(paths, manifest):
        check_file(path, expected, manifest.id)
    check_device_state(paths, manifest)


def files(paths: SnapshotPaths, manifest: Manifest) -> tuple[tuple[Path, SnapshotFile], ...]:
    """Memory, device state and disk, each with what the manifest says of it."""
    return (paths.memory, manifest.memory), (paths.vmstate, manifest.vmstate), (paths.disk, manifest.disk)


def check_device_state(paths: SnapshotPaths, manifest: Manifest) -> None:
    """Refuse a device state that is not what was published.

    Raises:
        CorruptError: if its SHA-256 differs.
    """
    with host_errors(f"read {paths.vmstate}"):
        digest = hashlib.sha256(paths.vmstate.read_bytes()).hexdigest()
    if digest != manifest.vmstate.sha256:
        raise CorruptError(f"{paths.vmstate} is not what was published: its SHA-256 differs.", hint=_LOST)


def check_file(path: Path, expected: SnapshotFile, snapshot_id: str) -> None:
    """Refuse what is no regular file, or has another size or a second link.

    Raises:
        CorruptError: naming the file and the difference.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError as err:
        raise CorruptError(f"Snapshot {snapshot_id} has lost its file {path.name}.", hint=_LOST) from err
    if not stat.S_ISREG(found.st_mode):
        raise CorruptError(f"{path} is not a regular file.", hint=_LOST)
    if found.st_size != expected.size_bytes:
        raise CorruptError(
            f"{path} has {found.st_size} bytes and was published with {expected.size_bytes}.", hint=_LOST
        )
    if found.st_nlink != 1:
        raise CorruptError(
            f"{path} has {found.st_nlink} links: another directory shares its inode, so it may change under a guest.",
            hint=f"Find the other one with `find -inum {found.st_ino}`; replace it with a copy.",
        )
