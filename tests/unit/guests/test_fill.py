"""``ramet-fill``, run on this host as it runs in a guest."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ramet.guests import agent_build
from ramet.model import PAGE_BYTES
from tests.capabilities import requires

pytestmark = requires("gcc")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fill") / "ramet-fill"
    path.write_bytes(agent_build.compile_programs()["ramet-fill"])
    path.chmod(0o755)
    return path


def run(program: Path, *arguments: object, status: int = 0) -> str:
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


def test_the_same_seed_writes_the_same_bytes(program: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(program, tmp_path / name, 3 * PAGE_BYTES + 5, seed)
    first, second, third = ((tmp_path / name).read_bytes() for name in "abc")
    assert len(first) == 3 * PAGE_BYTES + 5
    assert (first == second, first == third) == (True, False)
    sums = [run(program, "--sum", tmp_path / name) for name in "abc"]
    assert (sums[0] == sums[1], sums[0] == sums[2]) == (True, False)


def test_pages_are_written_again_here_and_there(program: Path, tmp_path: Path) -> None:
    path = tmp_path / "file"
    run(program, path, 1000 * PAGE_BYTES, 1)
    before = path.read_bytes()
    run(program, "--pages", path, 50, 7)
    after = path.read_bytes()
    assert len(after) == len(before)
    changed = [
        page
        for page in range(1000)
        if before[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] != after[page * PAGE_BYTES : (page + 1) * PAGE_BYTES]
    ]
    assert 40 <= len(changed) <= 50
    assert changed != list(range(changed[0], changed[0] + len(changed)))


def test_what_cannot_be_done_is_told(program: Path, tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"x")
    assert "No such file" in run(program, "--sum", tmp_path / "missing", status=1)
    assert "has no page" in run(program, "--pages", tmp_path / "short", 1, 1, status=1)
    assert "usage:" in run(program, "--pages", tmp_path / "short", "many", 1, status=2)
