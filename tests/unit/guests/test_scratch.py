"""Scratch directories: those of processes that were killed go, those of others stay."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from ramet import helpers
from ramet.guests import debian
from ramet.guests.scratch import scratch


@pytest.fixture
def left(tmp_path: Path) -> list[Path]:
    """Of a process that has ended, and of one that is at work."""
    with subprocess.Popen(["true"]) as child:
        pass
    found = [tmp_path / f".unpack-{pid}-abc" for pid in (child.pid, os.getpid())]
    for path in found:
        (path / "tree").mkdir(parents=True)
    return found


def test_what_a_killed_process_left_goes_and_what_others_use_stays(tmp_path: Path, left: list[Path]) -> None:
    ended, alive = left
    with scratch(tmp_path, ".unpack-") as directory:
        assert directory.parent == tmp_path
        assert not ended.exists()
        assert alive.exists()
    assert list(tmp_path.iterdir()) == [alive]


@pytest.mark.parametrize("name", [".unpack-abcd1234", ".unpack-ab-12", ".unpack-", "12-ab"])
def test_what_is_nobody_s_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with scratch(tmp_path, ".unpack-"):
        assert (tmp_path / name).is_dir()


def test_a_package_that_a_killed_build_had_unpacked_goes_with_the_next(
    tmp_path: Path, left: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(debian, "download", lambda name, packages: packages / name)
    monkeypatch.setattr(helpers, "find_program", lambda name, **_: name)
    monkeypatch.setattr(helpers, "run", lambda argv, **_: Path(argv[-1]).mkdir())
    with debian.unpacked("kernel", tmp_path) as tree:
        assert tree.is_dir()
        assert not left[0].exists()
    assert not tree.exists()
