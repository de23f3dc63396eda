"""What the tests of what a VMM may do share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ramet.hypervisors import confinement
from tests.unit.hypervisors import confined
from tests.unit.hypervisors.confined import FEWER_TASKS, Place


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """An instance and its surroundings; of processes, a VMM may have fewer than the hostile program wants."""
    monkeypatch.setattr(confinement, "TASKS", FEWER_TASKS)
    yield from confined.made()
