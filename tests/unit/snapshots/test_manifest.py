"""A snapshot is believed only as far as it is what was published, and loaded only by the VMM that can."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ramet.errors import CorruptError, HostError, IncompatibleError, NotFoundError
from ramet.model import UNSEALED, Accelerator, Manifest, VmmBuild
from ramet.paths import SnapshotPaths
from ramet.snapshots import manifest as manifests
from tests.unit.snapshots.published import BUILD, SNAPSHOT, published


@pytest.fixture
def snapshot(tmp_path: Path) -> SnapshotPaths:
    return published(tmp_path)[0]


def edit(snapshot: SnapshotPaths, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the JSON of a published manifest, and seal it again."""
    content = json.loads(snapshot.manifest.read_bytes()) | {"seal": UNSEALED}
    change(content)
    rewrite(snapshot, manifests.sealed(json.dumps(content).encode()))


def rewrite(snapshot: SnapshotPaths, data: bytes) -> None:
    snapshot.manifest.unlink()
    snapshot.manifest.write_bytes(data)


def test_what_was_published_is_believed(tmp_path: Path) -> None:
    snapshot, manifest = published(tmp_path)
    assert manifests.load(snapshot) == manifest
    manifests.check_files(snapshot, manifest)
    manifests.check_compatible(manifest, BUILD)


# -- the manifest itself ------------------------------------------------------------------------------------------


def test_no_snapshot_is_not_found_and_no_manifest_is_corrupt(snapshot: SnapshotPaths) -> None:
    with pytest.raises(NotFoundError, match="no snapshot 'ffffffffffff'"):
        manifests.load(SnapshotPaths(dir=snapshot.dir.with_name("ffffffffffff")))
    snapshot.manifest.unlink()
    with pytest.raises(CorruptError, match="has lost its manifest"):
        manifests.load(snapshot)


def test_a_manifest_cut_off_anywhere_is_corrupt(snapshot: SnapshotPaths) -> None:
    whole = snapshot.manifest.read_bytes().rstrip()
    for length in range(len(whole)):
        rewrite(snapshot, whole[:length])
        with pytest.raises(CorruptError, match="is damaged"):
            manifests.load(snapshot)


@pytest.mark.parametrize(
    "field", [field for field in Manifest.__struct_fields__ if field not in ("format_version", "seal")]
)
def test_a_field_that_is_missing_or_of_another_type_is_corrupt(snapshot: SnapshotPaths, field: str) -> None:
    edit(snapshot, lambda content: content.update({field: ["unexpected"]}))
    with pytest.raises(CorruptError, match=rf"is damaged: .*\$\.{field}"):
        manifests.load(snapshot)
    edit(snapshot, lambda content: content.pop(field))
    with pytest.raises(CorruptError, match=f"missing required field `{field}`"):
        manifests.load(snapshot)


def test_an_unknown_field_is_corrupt(snapshot: SnapshotPaths) -> None:
    edit(snapshot, lambda content: content.update(surprise=1))
    with pytest.raises(CorruptError, match="surprise"):
        manifests.load(snapshot)


@pytest.mark.parametrize("version", [0, 1, 10**9])
def test_an_unknown_version_is_refused_as_such(snapshot: SnapshotPaths, version: int) -> None:
    """Its fields may be others: that is what the version is for."""
    edit(snapshot, lambda content: content.update(format_version=version, surprise=1))
    with pytest.raises(CorruptError, match=f"format version {version}; this Ramet reads 2"):
        manifests.load(snapshot)


def test_a_manifest_without_a_version_is_corrupt(snapshot: SnapshotPaths) -> None:
    edit(snapshot, lambda content: content.pop("format_version"))
    with pytest.raises(CorruptError, match="format_version"):
        manifests.load(snapshot)


def test_no_flipped_bit_of_a_manifest_goes_unnoticed(snapshot: SnapshotPaths) -> None:
    whole = snapshot.manifest.read_bytes()
    for position in range(len(whole)):
        for bit in (0, 5):  # the second makes other white space, and another case
            rewrite(snapshot, whole[:position] + bytes([whole[position] ^ 1 << bit]) + whole[position + 1 :])
            with pytest.raises(CorruptError):
                manifests.load(snapshot)


def test_another_snapshot_s_manifest_is_corrupt(snapshot: SnapshotPaths) -> None:
    """H11: in the directory of another snapshot."""
    edit(snapshot, lambda content: content.update(id="ffffffffffff"))
    with pytest.raises(CorruptError, match="is the manifest of 'ffffffffffff'"):
        manifests.load(snapshot)


@pytest.mark.parametrize("text", ["../../etc", "", "0123456789AB", "0123456789ab\n", f"{SNAPSHOT}/.."])
def test_an_id_that_is_none_is_corrupt(snapshot: SnapshotPaths, text: str) -> None:
    edit(snapshot, lambda content: content.update(id=text))
    with pytest.raises(CorruptError, match="is damaged"):
        manifests.load(snapshot)


def test_a_manifest_that_cannot_be_read_is_a_host_error(snapshot: SnapshotPaths) -> None:
    snapshot.manifest.unlink()
    snapshot.manifest.mkdir()
    with pytest.raises(HostError, match="Could not read"):
        manifests.load(snapshot)


# -- which VMM may load it ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", VmmBuild.__struct_fields__)
def test_any_difference_of_the_vmm_is_refused_in_words(tmp_path: Path, field: str) -> None:
    """H61; a field that is added to VmmBuild and not compared fails here."""
    _, manifest = published(tmp_path)
    other: dict[str, Any] = {"hypervisor": "firecracker", "accelerator": Accelerator.KVM}
    now = other.get(field, "another")
    build = msgspec.convert(msgspec.to_builtins(BUILD) | {field: now}, VmmBuild)
    with pytest.raises(IncompatibleError) as caught:
        manifests.check_compatible(manifest, build)
    assert f"was {str(getattr(BUILD, field))!r}, here it is {str(now)!r}" in caught.value.message
    assert ";" not in caught.value.message, "one difference, one clause"


def test_all_differences_are_named(tmp_path: Path) -> None:
    _, manifest = published(tmp_path)
    build = msgspec.structs.replace(BUILD, version="9.1", devices="0ther", accelerator=Accelerator.KVM)
    with pytest.raises(IncompatibleError, match=r"version .*; .*accelerator .*; .*device list"):
        manifests.check_compatible(manifest, build)


# -- its files ----------------------------------------------------------------------------------------------------


FILES = ["memory", "vmstate", "disk.raw"]


def refused(snapshot: SnapshotPaths, words: str) -> None:
    manifest = manifests.load(snapshot)
    with pytest.raises(CorruptError, match=words) as caught:
        manifests.check_files(snapshot, manifest)
    assert caught.value.hint


@pytest.mark.parametrize("change", [-1, -4096, 1, 4096])
@pytest.mark.parametrize("name", FILES)
def test_another_size_is_corrupt(snapshot: SnapshotPaths, name: str, change: int) -> None:
    """A truncated memory file would be a SIGBUS in the VMM (H75), a longer one somebody's write (H08)."""
    path = snapshot.dir / name
    path.chmod(0o600)
    os.truncate(path, path.stat().st_size + change)
    refused(snapshot, f"{name} has .* bytes and was published with")


@pytest.mark.parametrize("name", FILES)
def test_a_second_link_is_corrupt(snapshot: SnapshotPaths, tmp_path: Path, name: str) -> None:
    """H01, H20: another directory can change it under a guest."""
    (tmp_path / "link").hardlink_to(snapshot.dir / name)
    refused(snapshot, f"{name} has 2 links")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory", "missing"])
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_file_is_corrupt(snapshot: SnapshotPaths, tmp_path: Path, name: str, kind: str) -> None:
    path = snapshot.dir / name
    moved = path.rename(tmp_path / "moved")
    make: dict[str, Callable[[], object]] = {
        "symlink": lambda: path.symlink_to(moved),
        "fifo": lambda: os.mkfifo(path),
        "directory": path.mkdir,
        "missing": lambda: None,
    }
    make[kind]()
    refused(snapshot, f"has lost its file {name}" if kind == "missing" else f"{name} is not a regular file")


@pytest.mark.parametrize("position", [0, 1, 5000, -1])
def test_a_flipped_bit_of_the_device_state_is_corrupt(snapshot: SnapshotPaths, position: int) -> None:
    state = bytearray(snapshot.vmstate.read_bytes())
    state[position] ^= 1
    snapshot.vmstate.chmod(0o600)
    snapshot.vmstate.write_bytes(state)
    refused(snapshot, "SHA-256 differs")


def test_a_device_state_without_a_digest_is_corrupt(snapshot: SnapshotPaths) -> None:
    edit(snapshot, lambda content: content["vmstate"].update(sha256=None))
    refused(snapshot, "SHA-256 differs")


def test_memory_of_another_size_than_the_guest_s_is_corrupt(snapshot: SnapshotPaths) -> None:
    """H03: a VMM would truncate or extend it."""
    edit(snapshot, lambda content: content.update(memory_mib=2))
    refused(snapshot, "says its memory has 1048576 bytes, and its guest 2 MiB")


@pytest.mark.parametrize("seal", [None, UNSEALED, "", "f" * 64])
def test_a_manifest_that_is_not_sealed_is_corrupt(snapshot: SnapshotPaths, seal: str | None) -> None:
    """Else whoever changes one would have to leave the seal out, and no more."""
    content = json.loads(snapshot.manifest.read_bytes())
    del content["seal"]
    rewrite(snapshot, json.dumps(content if seal is None else {**content, "seal": seal}).encode())
    with pytest.raises(CorruptError, match="its seal does not fit"):
        manifests.load(snapshot)
