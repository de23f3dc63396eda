"""The store that is measured in: beside the user's, gone afterwards, and swept by the next run if one was killed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from ramet import process
from ramet.bench import hand
from ramet.bench.place import place, remove_abandoned
from ramet.errors import HostError, NoSpaceError
from ramet.store.locks import locked
from tests.unit.bench.stores import DIGEST, with_image


def say(_text: str) -> None:
    """Nobody listens."""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    with_image(home)
    return home


def benches(home: Path) -> list[str]:
    return sorted(path.name for path in home.iterdir() if path.name.startswith("bench"))


def test_it_is_on_the_user_s_file_system_with_the_image_and_gone_afterwards(home: Path) -> None:
    before = sorted(path.name for path in home.iterdir())
    with place(home, say) as here:
        assert here.directory.parent == home
        assert here.directory.stat().st_mode & 0o777 == 0o700
        directory, image = here.image()
        assert (directory.name, image.digest) == (DIGEST, DIGEST)
        assert here.scratch.is_dir()
        assert here.reflinks == (here.why_no_reflinks is None)
    assert sorted(path.name for path in home.iterdir()) == before
    assert list((home / "locks").iterdir()) == []


def test_it_is_gone_whatever_ends_the_block(home: Path) -> None:
    with pytest.raises(KeyboardInterrupt), place(home, say):
        raise KeyboardInterrupt
    with pytest.raises(NoSpaceError), place(home, say):
        raise NoSpaceError("full")
    assert benches(home) == []


def test_the_user_s_store_is_used_as_ever_meanwhile(home: Path) -> None:
    with place(home, say):
        assert with_image_of(home) == ("micro",)


def with_image_of(home: Path) -> tuple[str, ...]:
    from ramet.instances.host import Host

    return Host(home).image_list()[0][1]


def abandoned(home: Path, name: str = "bench-0a1b2c") -> Path:
    directory = home / name
    (directory / "scratch").mkdir(parents=True)
    return directory


def test_what_a_killed_run_left_goes_with_the_next_one_and_its_vmms_too(home: Path) -> None:
    directory = abandoned(home)
    work = directory / "scratch" / "tmpabc"
    work.mkdir()
    child = subprocess.Popen(["sleep", "60"], env={**os.environ, process.VMM_MARK: str(work)})
    told: list[str] = []
    remove_abandoned(home, told.append)
    assert child.wait(timeout=10) < 0
    assert benches(home) == []
    assert told == ["removing what a run that was killed has left (bench-0a1b2c)"]


def test_what_another_run_is_at_work_on_stays(home: Path) -> None:
    directory = abandoned(home)
    with locked(home / "locks", directory.name):
        remove_abandoned(home, say)
    assert benches(home) == ["bench-0a1b2c"]


def test_a_lock_that_a_killed_run_left_goes_too(home: Path) -> None:
    (home / "locks" / "bench-0a1b2c").touch()
    remove_abandoned(home, say)
    assert list((home / "locks").iterdir()) == []


def test_what_is_not_ours_stays(home: Path) -> None:
    (home / "bench-marks").mkdir()
    (home / "bench-ffffff").touch()
    remove_abandoned(home, say)
    assert benches(home) == ["bench-ffffff", "bench-marks"]


# -- by hand ------------------------------------------------------------------------------------------------------


def test_a_file_is_cloned_or_copied_with_its_holes(tmp_path: Path) -> None:
    src, dst = tmp_path / "src", tmp_path / "dst"
    with src.open("wb") as stream:
        stream.seek(1 << 20)
        stream.write(b"x" * 5000)
        stream.truncate(4 << 20)
    hand.clone_or_copy(src, dst)
    assert dst.read_bytes() == src.read_bytes()
    assert dst.stat().st_blocks <= src.stat().st_blocks


def test_a_file_that_is_not_there_is_a_host_s_error(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="No such file"):
        hand.clone_or_copy(tmp_path / "src", tmp_path / "dst")
