"""Shell completion, as a shell asks for it."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ramet.store import names
from ramet.store.layout import open_store

TIMEOUT_S = 20.0


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    paths = open_store(home)
    for name in ("web", "worker"):
        names.claim(paths.instance_names, name, "0123456789ab", what="instance")
    names.claim(paths.snapshot_names, "golden", "0123456789ab", what="snapshot")
    for file in ("web.tar", "file"):
        (tmp_path / file).touch()
    (paths.images / "tags").mkdir()
    (paths.images / "tags" / "micro").touch()
    return home


def complete(line: str, home: Path) -> list[str]:
    env = {**os.environ, "RAMET_HOME": str(home), "_RAMET_COMPLETE": "bash_complete", "COMP_WORDS": line}
    env["COMP_CWORD"] = str(len(line.split(" ")) - 1)
    ask = [sys.executable, "-c", "from ramet.cli.main import main; main()"]
    done = subprocess.run(ask, env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=True, cwd=home.parent)
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
        ("ramet restore web --snapshot g", ["golden"]),
        ("ramet verify --scenario bas", ["base"]),
        ("ramet verify --sabotage al", ["all"]),
        ("ramet verify --sabotage in-place", ["in-place-diff"]),
        ("ramet bench --only man", ["many"]),
        ("ramet create new --image mi", ["micro"]),
        ("ramet cp we", ["web:/", "web:/data/", "web.tar"]),
        ("ramet cp file wo", ["worker:/", "worker:/data/"]),
        ("ramet cp fi", ["fi"]),
        ("ramet cp no", []),
    ],
)
def test_what_is_completed(home: Path, line: str, expected: list[str]) -> None:
    assert complete(line, home) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["fork", "snapshot", ":", "g"], ["golden"]),
        (["fork", "snapshot", ":"], ["golden"]),
        (["fork", "snapshot", ":", "x"], []),
        (["fork", "sn"], ["snapshot:golden"]),
        (["cp", "file", "web", ":", "/d"], ["/data/"]),
        (["cp", "file", "web", ":", "/data/x"], []),
        (["fork", "snapshot", ":", "golden", ""], []),
        (["show", "snapshot", ":", "golden", "w"], []),
    ],
)
def test_a_name_that_bash_has_cut_at_its_colon(home: Path, words: list[str], expected: list[str]) -> None:
    """What is before the colon stays on the line, and bash replaces the rest."""
    assert complete(" ".join(["ramet", *words]), home) == expected


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_itself_completes_a_name_with_a_colon(home: Path) -> None:
    ramet = home.parent / "ramet"
    ramet.write_text(f'#!/bin/sh\nexec {sys.executable} -c "from ramet.cli.main import main; main()" "$@"\n')
    ramet.chmod(0o755)
    master, slave = pty.openpty()
    env = {**os.environ, "RAMET_HOME": str(home), "PATH": f"{home.parent}:{os.environ['PATH']}", "TERM": "dumb"}
    command = ["bash", "--norc", "--noprofile", "-i"]
    shell = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True)
    os.close(slave)
    with shell:
        try:
            os.write(master, b'eval "$(_RAMET_COMPLETE=bash_source ramet)"; echo loaded-$((40 + 2))\n')
            assert b"loaded-42" in shown(master, b"loaded-42")
            os.write(master, b"ramet fork snapshot:g\t")
            assert b"ramet fork snapshot:golden" in shown(master, b"snapshot:golden")
        finally:
            shell.kill()
            os.close(master)


def shown(master: int, until: bytes) -> bytes:
    """What a terminal shows until that is among it, or nothing more comes."""
    seen = b""
    while until not in seen and select.select([master], [], [], TIMEOUT_S)[0]:
        seen += os.read(master, 4096)
    return seen


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    assert complete("ramet show ", tmp_path / "none") == []
    assert not (tmp_path / "none").exists()
    assert complete("ramet show ", Path("relative")) == []
