"""A wheel: installed into an empty environment of a host without a compiler, it builds the image and passes ``verify``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.capabilities import requires

ROOT = Path(__file__).parents[2]
COMPILERS = ("cc", "gcc", "c99", "c89", "clang", "tcc")
pytestmark = requires("qemu", "gcc")


def run(*argv: str | Path, path: Path | None = None) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAMET_")}
    done = subprocess.run(
        argv,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
        cwd="/",
        env={**env, **({"PATH": str(path)} if path is not None else {})},
    )
    assert done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def commit() -> str:
    return run("git", "-C", ROOT, "rev-parse", "--short=12", "HEAD").strip()


@pytest.fixture
def no_compiler(tmp_path: Path) -> Path:
    """A PATH with everything that this host has but its compilers."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for place in ("/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"):
        for program in Path(place).glob("*"):
            if program.name.startswith(COMPILERS) or (directory / program.name).is_symlink():
                continue
            (directory / program.name).symlink_to(program)
    return directory


@pytest.mark.timeout(1800)
def test_an_installed_wheel_needs_no_compiler_and_passes_verify(
    tmp_path: Path, no_compiler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    commits = {commit()}
    with monkeypatch.context() as patch:
        patch.setenv("TMPDIR", str(temporary))  # what others build meanwhile is elsewhere
        run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path / "wheels", ROOT)
    commits.add(commit())  # somebody may have committed meanwhile
    (wheel,) = (tmp_path / "wheels").iterdir()
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    run(tmp_path / "venv/bin/pip", "install", "-q", wheel)
    ramet = tmp_path / "venv/bin/ramet"

    assert run(ramet, "--version") in {f"ramet 0.1.0 ({one})\n" for one in commits}
    with zipfile.ZipFile(wheel) as archive:
        assert {"ramet/commit", "ramet/guests/prebuilt/ramet-agent", "ramet/py.typed"} <= set(archive.namelist())

    home = tmp_path / "home"
    run(ramet, "--home", home, "image", "build", path=no_compiler)
    report = json.loads(run(ramet, "--home", home, "verify", "--scenario", "base", "--json", path=no_compiler))
    assert report["verdict"] == "PASS"
    measured = json.loads(
        run(ramet, "--home", home, "bench", "--only", "idle", "--json", "--output", tmp_path, path=no_compiler)
    )
    assert measured["benchmarks"][0]["figures"]
    assert "--ramet:" in (tmp_path / "report.html").read_text(), "its looks are in the wheel too"
    assert json.loads(run(ramet, "--home", home, "ls", "--json")) == []
    assert list(temporary.glob("ramet-wheel-*")) == []
