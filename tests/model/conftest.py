"""Where the stores of these tests are, and what plays their VMMs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.model.stage import build_vmm, play

SHM = Path("/dev/shm")


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What plays the VMMs."""
    return build_vmm(tmp_path_factory.mktemp("vmm"))


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A directory on a tmpfs, where an fsync costs nothing, if the host has one that we may write to."""
    base = SHM if os.access(SHM, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="ramet-model-", dir=base) as directory:
        yield Path(directory)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> None:
    """VMs are played."""
    play(monkeypatch)
