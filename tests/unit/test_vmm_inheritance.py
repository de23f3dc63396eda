"""What a VMM has from the command that starts it, and from the VMM before it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ramet import process
from ramet.model import VmmProcess


@contextmanager
def spawned(place: Path) -> Iterator[VmmProcess]:
    """One that has written a line to its log."""
    log = place / "vmm.log"
    argv = ["sh", "-c", "echo ready; exec sleep 600"]
    vmm = process.spawn(argv, log_path=log, pass_fds=(), cwd=place, mark=place)
    try:
        process.wait_until(lambda: "ready" in log.read_text().splitlines(), 20, what="its first words")
        yield vmm
    finally:
        process.kill_and_wait(vmm)


def test_it_finds_none_of_our_secrets_in_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("TZ", "Pacific/Chatham")
    with spawned(tmp_path) as vmm:
        entries = Path(f"/proc/{vmm.pid}/environ").read_bytes().split(b"\0")
    found = {entry.partition(b"=")[0].decode() for entry in entries}
    assert {process.VMM_MARK, "PATH", "TZ"} <= found
    of_the_shell = {"PWD", "OLDPWD", "SHLVL", "_"}
    assert found <= {"", process.VMM_MARK, *process.PASSED_ON, *of_the_shell}


@pytest.mark.parametrize("kind", ["fifo", "directory"])
def test_what_the_one_before_has_put_in_the_place_of_its_log_goes(tmp_path: Path, kind: str) -> None:
    log = tmp_path / "vmm.log"
    if kind == "fifo":
        os.mkfifo(log)
    else:
        (log / "full").mkdir(parents=True)
    with spawned(tmp_path):
        assert log.is_file()
