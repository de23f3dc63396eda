"""The whole of it as a user who is not root: QEMU needs neither root nor KVM."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from ramet.model import MemoryPolicy
from tests.capabilities import requires
from tests.file_systems import on_ext4

NOBODY = 65534
PYTHON = Path("/usr/bin/python3")
SOURCE = Path(__file__).parents[2] / "src"
PACKAGES = Path(sysconfig.get_path("purelib"))

pytestmark = [requires("root", "qemu"), on_ext4]


def _why_not() -> str | None:
    """The system's Python must be able to import what is installed here, and nobody to read it."""
    if not PYTHON.exists():
        return f"there is no {PYTHON}"
    ask = "import sys; print(sys.version_info[:2] == tuple(map(int, sys.argv[1:])))"
    said = subprocess.run(
        [PYTHON, "-c", ask, *map(str, sys.version_info[:2])], capture_output=True, text=True, check=False
    ).stdout
    if said.strip() != "True":
        return f"{PYTHON} has another version than this Python"
    closed = [path for path in (*SOURCE.parents, *PACKAGES.parents) if not path.stat().st_mode & 0o001]
    return f"{closed[0]} is closed to others" if closed else None


@pytest.fixture
def their_home(store_home: Path) -> Iterator[Path]:
    """A store of nobody's, with a copy of the image."""
    home = store_home.parent / "nobody"
    shutil.copytree(store_home / "images", home / "images")
    for path in (home, *home.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    home.chmod(0o700)
    home.parent.chmod(0o755)
    home.parent.parent.chmod(0o755)
    yield home
    shutil.rmtree(home)


def as_nobody(home: Path, *argv: str) -> subprocess.CompletedProcess[bytes]:
    """Run ``ramet`` as nobody, with that store."""
    why = _why_not()
    if why is not None:
        pytest.skip(why)
    environment = ["PYTHONDONTWRITEBYTECODE=1", f"PYTHONPATH={PACKAGES}:{SOURCE}", f"RAMET_HOME={home}"]
    user = ("setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups", "env", *environment)
    return subprocess.run(
        [*user, str(PYTHON), "-m", "ramet.cli", *argv],
        capture_output=True,
        cwd="/",
        timeout=550,
        check=False,
    )


@pytest.mark.parametrize("memory_policy", MemoryPolicy)
def test_verify_passes_for_nobody(their_home: Path, memory_policy: MemoryPolicy) -> None:
    done = as_nobody(their_home, "verify", "--scenario", "base", "--json", "--memory-policy", memory_policy)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert json.loads(done.stdout)["verdict"] == "PASS"


def test_bench_measures_for_nobody(their_home: Path) -> None:
    """A QEMU that opens memory for writing is refused a snapshot's, which it is started with by hand all the same."""
    chosen = ("--only", "restore", "--only", "fork", "--memory-policy", "share")
    done = as_nobody(their_home, "bench", "--json", "--against", *chosen)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    rows = [
        row["id"]
        for one in json.loads(done.stdout)["benchmarks"]
        for figure in one["figures"]
        for row in figure["rows"]
    ]
    assert rows.count("ramet") == rows.count("floor") == 2
    assert [path for path in their_home.iterdir() if path.name.startswith("bench-")] == []
