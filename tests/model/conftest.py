"""Where the stores of these tests are, and what plays their VMMs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.model.played_stage import build_vmm, play
from tests.model.sequences import stores_in_memory


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What plays the VMMs."""
    return build_vmm(tmp_path_factory.mktemp("vmm"))


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A directory for stores, in memory if there is such a place."""
    with stores_in_memory() as directory:
        yield directory


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> None:
    """VMs are played."""
    play(monkeypatch)
