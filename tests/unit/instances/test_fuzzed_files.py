"""Instance files, manifests and names as anybody may have left them: told as damaged, never anything worse. Symbolic links in the
store are looked at, and not followed.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ramet.errors import CorruptError, NotFoundError, RametError
from ramet.instances import inspect
from ramet.instances.snapshot_check import check as check_snapshots
from ramet.instances.store_check import check
from ramet.snapshots import manifest as manifests
from tests.unit.instances.place import INSTANCE, Place

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=30),
    st.sampled_from(["../..", "/etc", "\0", "a" * 12]),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)
in_any_place = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@st.composite
def damage(draw: st.DrawFn, whole: bytes) -> bytes:
    """The bytes of a JSON file with something done to them."""
    kind = draw(st.sampled_from(["flip", "cut", "splice", "field", "drop", "noise"]))
    if kind == "flip":
        position = draw(st.integers(0, len(whole) - 1))
        return whole[:position] + bytes([whole[position] ^ draw(st.integers(1, 255))]) + whole[position + 1 :]
    if kind == "cut":
        return whole[: draw(st.integers(0, len(whole) - 1))]
    if kind == "splice":
        position = draw(st.integers(0, len(whole)))
        return whole[:position] + draw(st.binary(min_size=1, max_size=40)) + whole[position:]
    if kind == "noise":
        return draw(st.binary(max_size=300))
    content: dict[str, Any] = json.loads(whole)
    field = draw(st.sampled_from(sorted(content)))
    if kind == "drop":
        del content[field]
    else:
        content[field] = draw(VALUES)
    return json.dumps(content).encode()


def put(path: Path, data: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(data)


@in_any_place
@given(data=st.data())
def test_a_manifest_is_what_was_published_or_is_damaged(place: Place, data: st.DataObject) -> None:
    whole = place.snapshot.manifest.read_bytes()
    damaged = data.draw(damage(whole))
    try:
        put(place.snapshot.manifest, damaged)
        if damaged == whole:
            return
        with pytest.raises(CorruptError):
            manifests.load(place.snapshot)
        (found,) = check_snapshots(place.store, [])
        assert not found.whole
    finally:
        put(place.snapshot.manifest, whole)


@in_any_place
@given(data=st.data())
def test_a_record_is_believed_or_is_damaged_and_whatever_looks_survives_it(place: Place, data: st.DataObject) -> None:
    whole = place.paths.record.read_bytes()
    try:
        put(place.paths.record, data.draw(damage(whole)))
        for look in (
            lambda: place.store.read(INSTANCE),
            lambda: inspect.show(place.store, "web"),
            lambda: inspect.all_instances(place.store),
            lambda: inspect.use(place.store),
            lambda: check(place.store, repair=False),
        ):
            with suppress(RametError):
                look()
    finally:
        put(place.paths.record, whole)


@in_any_place
@given(content=st.binary(max_size=40))
def test_a_name_leads_to_an_instance_or_is_refused(place: Place, content: bytes) -> None:
    path = place.store.paths.instance_names / "stray"
    path.write_bytes(content)
    with suppress(NotFoundError, CorruptError):
        place.store.find("stray")
    path.unlink()


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../../etc/passwd", "nowhere"])
def test_a_symbolic_link_in_the_place_of_a_file_is_not_followed(place: Place, target: str, tmp_path: Path) -> None:
    """Whoever can put one there must not have us read, or write, what it leads to."""
    for path in (place.snapshot.memory, place.snapshot.disk, place.snapshot.vmstate, place.snapshot.manifest):
        aside = path.rename(tmp_path / path.name)
        path.symlink_to(target)
        (found,) = check_snapshots(place.store, [])
        assert path.name in {one.file for one in found.damage}
        path.unlink()
        aside.rename(path)
    (found,) = check_snapshots(place.store, [])
    assert found.whole
