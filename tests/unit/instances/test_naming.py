"""The names of forks, and the name that a snapshot's instance has now: a claimed fork was called by its id when that was made."""

from __future__ import annotations

import msgspec
import pytest

from ramet.errors import ConfigError
from ramet.instances import naming, snapshots
from ramet.model import Manifest
from ramet.snapshots import manifest as manifests
from tests.unit.instances.place import OTHER, Place


@pytest.fixture
def manifest(place: Place) -> Manifest:
    """As of a fork that was parked then."""
    return msgspec.structs.replace(manifests.load(place.snapshot), instance_name=place.record.id)


def test_the_name_that_it_has_been_given_since(place: Place, manifest: Manifest) -> None:
    assert naming.owner_name(place.store, manifest) == "web"


def test_the_last_name_of_one_that_is_gone(place: Place, manifest: Manifest) -> None:
    gone = msgspec.structs.replace(manifest, instance_id=OTHER, instance_name="db")
    assert naming.owner_name(place.store, gone) == "db"


def test_the_last_name_of_one_whose_record_is_damaged(place: Place, manifest: Manifest) -> None:
    place.paths.record.write_text("{")
    assert naming.owner_name(place.store, manifest) == place.record.id


def test_snapshots_are_listed_by_it(place: Place) -> None:
    place.change(name="renamed")
    assert [one.instance_name for one in snapshots.all_snapshots(place.store)] == ["renamed"]


@pytest.mark.parametrize("count", [-2, 0, 1001])
def test_so_many_forks_cannot_be(place: Place, count: int) -> None:
    with pytest.raises(ConfigError, match=f"{count} is no number of forks") as caught:
        naming.names_of_forks(place.store, "web", [], count)
    assert caught.value.hint == "Use 1 to 1000."


def test_the_name_that_two_forks_were_given_is_told(place: Place) -> None:
    with pytest.raises(ConfigError, match="The name 'b' was given to two forks"):
        naming.names_of_forks(place.store, "web", ["a", "b", "c", "b"], None)
