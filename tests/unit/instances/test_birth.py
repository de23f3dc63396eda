"""New instances: an id whose VMM's user is nobody else's."""

from __future__ import annotations

import pytest

from ramet.hypervisors.users import USERS, user_number
from ramet.instances import birth
from ramet.store import layout
from tests.unit.instances.place import INSTANCE, Place


def test_no_two_instances_have_the_same_user(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    same_user = f"{int(INSTANCE, 16) + len(USERS):012x}"
    assert user_number(same_user) == user_number(INSTANCE)
    ids = iter([INSTANCE, same_user, "2" * 12, "2" * 12, "3" * 12])
    monkeypatch.setattr(layout, "new_id", lambda: next(ids))
    assert birth.new_ids(place.store, 2) == ["2" * 12, "3" * 12]
