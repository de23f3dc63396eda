"""A store to break."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.instances.place import Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "home")
