"""Shell completion, as a shell asks for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ramet.store import names
from ramet.store.layout import open_store


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    paths = open_store(home)
    for name in ("web", "worker"):
        names.claim(paths.instance_names, name, "0123456789ab", what="instance")
    names.claim(paths.snapshot_names, "golden", "0123456789ab", what="snapshot")
    return home


def complete(line: str, home: Path) -> list[str]:
    env = {**os.environ, "RAMET_HOME": str(home), "_RAMET_COMPLETE": "bash_complete", "COMP_WORDS": line}
    env["COMP_CWORD"] = str(len(line.split(" ")) - 1)
    ask = [sys.executable, "-c", "from ramet.cli.main import main; main()"]
    done = subprocess.run(ask, env=env, capture_output=True, text=True, timeout=20, check=True)
    assert done.stderr == ""
    return [row.partition(",")[2] for row in done.stdout.splitlines() if row]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ramet stan", ["standby"]),
        ("ramet standby w", ["web", "worker"]),
        ("ramet standby web wo", ["worker"]),
        ("ramet fork ", ["web", "worker", "snapshot:golden"]),
        ("ramet fork snapshot:g", ["snapshot:golden"]),
        ("ramet snapshot check ", ["golden"]),
        ("ramet exec x", []),
        ("ramet restore --veri", ["--verified"]),
    ],
)
def test_what_is_completed(home: Path, line: str, expected: list[str]) -> None:
    assert complete(line, home) == expected


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    assert complete("ramet show ", tmp_path / "none") == []
    assert not (tmp_path / "none").exists()
    assert complete("ramet show ", Path("relative")) == []
