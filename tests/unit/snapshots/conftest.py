"""What a capture starts from, and where it writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from ramet.paths import InstancePaths, SnapshotPaths


@pytest.fixture
def live(tmp_path: Path) -> InstancePaths:
    paths = InstancePaths(dir=tmp_path / "instance")
    paths.work.mkdir(parents=True)
    paths.disk.write_bytes(b"disk" * 4096)
    return paths


@pytest.fixture
def into(tmp_path: Path) -> SnapshotPaths:
    directory = tmp_path / "work-in-progress"
    directory.mkdir()
    return SnapshotPaths(dir=directory)
