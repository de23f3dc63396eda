"""Which snapshots an instance may be rolled back to, and that one which could not be taken whole has no name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from ramet.errors import ConfigError, HostError, StateError
from ramet.instances import restore, snapshots
from ramet.instances.context import Locked
from ramet.model import Failure, State
from ramet.snapshots import manifest as manifests
from ramet.store import names
from tests.unit.instances.place import OTHER, Place


@pytest.mark.parametrize(
    ("name", "said"), [("web", f"taken of another 'web', which has the id {OTHER}"), ("db", "taken of 'db', not of")]
)
def test_a_snapshot_of_another_is_refused_and_whose_it_is_told(
    place: Place, name: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name can be given again: an earlier instance of that name is another one."""
    other = msgspec.structs.replace(manifests.load(place.snapshot), instance_id=OTHER, instance_name=name)
    monkeypatch.setattr(manifests, "load", lambda _paths: other)
    instance = Locked(place.store, msgspec.structs.replace(place.record, name="web", snapshot=None))
    with pytest.raises(ConfigError, match=said):
        restore.check(instance, place.snapshot)


def test_one_whose_instance_could_not_note_it_has_no_name(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verb is told as failed."""
    manifest = msgspec.structs.replace(manifests.load(place.snapshot), id="b" * 12)
    files = SimpleNamespace(dir=Path("/nowhere"))
    taken = SimpleNamespace(summed_up=lambda: manifest, files=files)

    def fail(*_arguments: object) -> None:
        raise HostError("The disk is gone.")

    monkeypatch.setattr(snapshots, "take", lambda *_: (taken, None))
    monkeypatch.setattr(snapshots, "publish", lambda *_: None)
    monkeypatch.setattr(snapshots, "keep_as_base", fail)
    with pytest.raises(HostError, match="disk is gone"):
        snapshots._capture(place.store, Locked(place.store, place.record), "golden")
    assert names.all_names(place.store.paths.snapshot_names) == {}


@pytest.mark.parametrize("discard_disk", [False, True])
def test_one_that_was_lost_before_it_ever_slept_has_nothing_to_go_back_to(place: Place, discard_disk: bool) -> None:
    """It had been told to add the option that it was given."""
    place.change(state=State.FAILED, failure=Failure.VMM_LOST, snapshot=None)
    with pytest.raises(StateError) as caught:
        restore.restore(
            place.store, "web", snapshot=None, discard_memory=False, discard_disk=discard_disk, verified=False
        )
    assert "--discard-disk" not in str(caught.value.hint)
    assert "`ramet start web` boots its disk." in str(caught.value.hint)
