"""``python -m tools.loopfs`` ends as a shell would, in words, and its file system is gone; a directory stands for that one."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tools import loopfs

IN_A_DIRECTORY = """
import sys
from contextlib import contextmanager
from pathlib import Path
from tools import loopfs

@contextmanager
def directory(kind):
    Path(sys.argv[1]).mkdir()
    try:
        yield Path(sys.argv[1])
    finally:
        Path(sys.argv[1]).rmdir()

loopfs.why_not, loopfs.loopfs = lambda: None, directory
sys.exit(loopfs.main(sys.argv[2:]))
"""


@pytest.fixture
def mount(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    @contextmanager
    def directory(_kind: str) -> Iterator[Path]:
        (tmp_path / "mnt").mkdir()
        try:
            yield tmp_path / "mnt"
        finally:
            (tmp_path / "mnt").rmdir()

    monkeypatch.setattr(loopfs, "why_not", lambda: None)
    monkeypatch.setattr(loopfs, "loopfs", directory)
    monkeypatch.setattr(signal, "signal", lambda _number, _handler: None)
    return tmp_path / "mnt"


@pytest.mark.parametrize(
    ("command", "status"),
    [(["true"], 0), (["sh", "-c", "exit 7"], 7), (["sh", "-c", "kill -9 $$"], 137), (["nosuch"], 127), (["/"], 126)],
)
def test_it_ends_as_its_command_does(mount: Path, command: list[str], status: int) -> None:
    assert loopfs.main(["xfs", "--", *command]) == status
    assert not mount.exists()


def test_a_command_that_is_not_found_is_named(mount: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loopfs.main(["xfs", "--", "nosuch"])
    assert capsys.readouterr().err == "loopfs: nosuch: No such file or directory\n"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_and_its_command_in_words(tmp_path: Path, number: signal.Signals, status: int) -> None:
    place = tmp_path / "mnt"
    argv = [sys.executable, "-c", IN_A_DIRECTORY, str(place), "xfs", "--", "sh", "-c", "echo here; exec sleep 60"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "here\n"
        child.send_signal(number)
        _, told = child.communicate(timeout=30)
    assert child.returncode == status
    assert told == f"loopfs: ended by {number.name}\n"
    assert not place.exists()


def test_a_file_system_that_cannot_be_made_is_told_in_words(
    mount: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextmanager
    def none(_kind: str) -> Iterator[Path]:
        subprocess.run(["false"], check=True)
        yield mount

    monkeypatch.setattr(loopfs, "loopfs", none)
    assert loopfs.main(["xfs", "--", "true"]) == 2
    assert "'false'" in capsys.readouterr().err


def test_what_a_killed_process_left_is_swept_by_one_of_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that sweep at once: whoever comes second finds nothing to do, and does not fail."""
    left = tmp_path / f"{loopfs.PREFIX}999999999-x"
    left.mkdir()
    real = Path.rename

    def late(path: Path, target: Path) -> Path:
        real(path, tmp_path / "the other's")
        return real(path, target)

    monkeypatch.setattr(loopfs, "PLACE", tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", late)
        loopfs.sweep()
    real(tmp_path / "the other's", left)
    loopfs.sweep()
    assert list(tmp_path.iterdir()) == []


def test_a_mount_that_was_shut_down_counts_as_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It says EIO to whoever looks, and is unmounted all the same."""
    ran: list[str] = []

    def dead(_path: Path) -> bool:
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / f"{loopfs.PREFIX}999999999-x").mkdir()
    monkeypatch.setattr(loopfs, "PLACE", tmp_path)
    monkeypatch.setattr(Path, "is_mount", dead)
    monkeypatch.setattr(loopfs, "_run", lambda argv: ran.append(argv[0]))
    loopfs.sweep()
    assert ran == ["umount"]
    assert list(tmp_path.iterdir()) == []
