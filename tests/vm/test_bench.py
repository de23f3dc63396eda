"""`ramet bench` with real guests: a short run says what it must and leaves nothing, and so does one that is interrupted."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import msgspec
import pytest

from ramet import Host, process
from ramet.bench import peers
from ramet.bench.documents import BenchDocument
from ramet.model import VmmProcess
from tests.capabilities import requires
from tests.vm.command_line import CommandLine

pytestmark = requires("qemu")


def directories(home: Path) -> list[str]:
    """What runs have in the store."""
    return [path.name for path in home.iterdir() if path.name.startswith("bench-")]


def vmms(home: Path) -> list[VmmProcess]:
    """The VMMs of runs."""
    return [vmm for part, vmm in process.marked_below(home) if part.startswith("bench-")]


@pytest.mark.timeout(900)
def test_a_short_run_measures_compares_and_leaves_nothing(command: CommandLine, host: Host, tmp_path: Path) -> None:
    """Also under a user's guest, which stays as it is."""
    options = ["--only", "fork", "--only", "idle", "--against", "--output", str(tmp_path / "figures")]
    done = command.run("bench", "--json", *options, timeout_s=600)
    assert done.status == 0, done
    found = msgspec.json.decode(done.out, type=BenchDocument)
    fork, idle = found.benchmarks
    assert (fork.skipped, idle.skipped) == (None, None)
    rows = {row.id: row for one in (fork, idle) for figure in one.figures for row in figure.rows}
    assert rows["ramet"].count == 5
    assert min(rows["floor"].median, rows["ramet"].median) > 0
    assert rows["ramet"].ratio == pytest.approx(rows["ramet"].median / rows["floor"].median, rel=0.001)
    phases = [row for name, row in rows.items() if name.startswith("ramet-") and row.part]
    assert {"ramet-start", "ramet-identity", "ramet-command"} <= {row.id for row in phases}
    assert [sum(taken) for taken in zip(*(row.samples for row in phases), strict=True)] == pytest.approx(
        rows["ramet"].samples, rel=0.001
    ), "the phases of a fork are all of it"
    assert rows["cp-sparse"].role == "peer"
    assert ("cp-reflink" in rows) == (found.host.copy_method == "reflink")
    assert 0 < rows["guest-memory"].median < 16 << 20
    assert rows["vmm-memory"].median > 0
    if found.host.copy_method == "reflink":
        assert rows["disk"].median < rows["source-disk"].median / 10
    absent = {peer.name: peer.why_absent for peer in found.peers if peer.why_absent is not None}
    assert (peers.REFLINK in absent) == (found.host.copy_method == "copy")
    assert found.host.file_system in ("ext4", "xfs")

    assert json.loads((tmp_path / "figures" / "report.json").read_bytes()) == json.loads(done.out)
    assert "one fork request" in (tmp_path / "figures" / "report.html").read_text()
    assert (directories(host.home), vmms(host.home)) == ([], [])
    assert host.list() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.timeout(900)
def test_a_run_that_is_ended_leaves_nothing_or_the_next_one_takes_it_away(
    command: CommandLine, host: Host, number: signal.Signals
) -> None:
    begun = command.start("bench", "--only", "idle")
    try:
        process.wait_until(lambda: vmms(host.home) or None, 30, what="a VMM of the run")
    finally:
        os.kill(begun.pid, number)
        begun.communicate(timeout=180)
    if number == signal.SIGINT:
        assert begun.returncode == 130
    else:
        assert directories(host.home)
        assert vmms(host.home)
        done = command.run("bench", "--only", "scatter", "--memory", "224M", timeout_s=600)
        assert "removing what a run that was killed has left" in done.err
    assert (directories(host.home), vmms(host.home)) == ([], [])
