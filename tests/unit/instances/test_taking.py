"""How scattered the base of a capture is (H73)."""

from __future__ import annotations

import msgspec
import pytest

from ramet.instances import taking
from ramet.instances.context import Locked
from ramet.model import Manifest
from ramet.paths import SnapshotPaths
from ramet.snapshots import manifest as manifests
from tests.unit.instances.place import INSTANCE, OTHER, Place


@pytest.mark.parametrize(("taken_of", "pieces"), [(INSTANCE, 4000), (OTHER, 0)])
def test_what_a_source_has_scattered_is_not_its_forks(
    place: Place, taken_of: str, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fork that shares its source's snapshot copies no more than one with a snapshot of its own."""
    load = manifests.load

    def scattered(paths: SnapshotPaths) -> Manifest:
        found = load(paths)
        memory = msgspec.structs.replace(found.memory, pieces=4000)
        return msgspec.structs.replace(found, instance_id=taken_of, memory=memory)

    monkeypatch.setattr(manifests, "load", scattered)
    instance = Locked(place.store, place.record)
    assert taking._scatter(instance, place.snapshot_id, guest_waits=False).pieces == pieces


def test_a_base_that_cannot_be_read_counts_as_whole(place: Place) -> None:
    place.snapshot.manifest.chmod(0o600)
    place.snapshot.manifest.write_bytes(b"{")
    instance = Locked(place.store, place.record)
    assert taking._scatter(instance, place.snapshot_id, guest_waits=True).pieces == 0
