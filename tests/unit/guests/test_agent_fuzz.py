"""tools/fuzz-agent builds, runs, and reports what it finds. A few seconds here; `make fuzz` for longer."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.capabilities import requires
from tests.fuzz import seeds

ROOT = Path(__file__).parents[3]
pytestmark = requires("clang")


def fuzz(seconds: int, artifacts: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "FUZZ_ARTIFACTS": str(artifacts),
        "PYTHON": sys.executable,
        "FUZZ_VERBOSITY": "0",
        **variables,
    }
    argv = [str(ROOT / "tools/fuzz-agent"), str(seconds)]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120, env=environment, cwd="/")


def test_nothing_is_found_in_a_few_seconds(tmp_path: Path) -> None:
    done = fuzz(3, tmp_path, FUZZ_CFLAGS="-O0")
    assert done.returncode == 0, done.stdout + done.stderr
    executed = [int(count) for count in re.findall(r"stat::number_of_executed_units: (\d+)", done.stdout)]
    assert len(executed) == 2
    assert min(executed) > 50
    assert list(tmp_path.iterdir()) == []


def test_crash_is_a_failure_and_leaves_its_input(tmp_path: Path) -> None:
    done = fuzz(2, tmp_path, FUZZ_CFLAGS="-O0 -DPLANTED_CRASH", FUZZ_TARGETS="parser:131072")
    assert done.returncode == 1
    [crash] = tmp_path.glob("fuzz-parser-crash-*")
    assert crash.stat().st_size >= 200
    program = tmp_path / "fuzz-parser"
    again = subprocess.run([program, crash], capture_output=True, text=True, check=False, timeout=60)
    assert again.returncode != 0
    assert "parser.c" in again.stderr


@pytest.mark.parametrize("argument", ["x", "-1", "1.5"])
def test_seconds_that_are_none(argument: str) -> None:
    done = subprocess.run(
        [ROOT / "tools/fuzz-agent", argument], capture_output=True, text=True, check=False, timeout=10
    )
    assert done.returncode == 2
    assert "usage" in done.stderr


def test_seeds_are_what_a_client_sends(tmp_path: Path) -> None:
    seeds.write(tmp_path)
    assert len(list(tmp_path.iterdir())) > 50
