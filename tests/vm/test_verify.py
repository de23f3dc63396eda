"""The verifier over real guests: it passes on a sound system, and every sabotage is caught by the checks that name it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from ramet import Host
from ramet.linux.mounts import file_system_of
from ramet.model import MIB, Hypervisor, InstanceInfo, MemoryPolicy
from ramet.process import wait_until
from ramet.verify import evidence, run, run_all_sabotages, sabotage, sabotage_names
from ramet.verify.checks import Verdict
from ramet.verify.claims import CLAIMS
from ramet.verify.needs import lacks
from ramet.verify.reports import page
from ramet.verify.reports.conversion import document, encode
from ramet.verify.reports.results import Report
from ramet.verify.reports.text import render
from ramet.verify.runner import MEMORY_MIN_MIB
from ramet.verify.sabotage import SABOTAGES, Sabotage
from ramet.verify.scenarios.catalogue import SCENARIOS
from ramet.verify.world import DISK_BYTES, Point, World
from tests import guest_images
from tests.browser import browser
from tests.capabilities import requires
from tests.file_systems import WHOLE, on_xfs
from tests.kept import Kept, keep
from tools import loopfs

pytestmark = pytest.mark.timeout(1800)
"""All scenarios take two minutes on a host that does nothing else."""

SAMPLED_ON_EXT4 = ("hard-linked-memory", "in-place-diff", "shared-disk", "written-under-a-running-fork", "torn-pair")
"""The rest is committed on XFS in every run, and on both file systems in `make test-all`."""
TOLD_APART = {
    "unconfined": "filters of system calls, not its own",
    "shared-user": "as we do",
    "mergeable-memory": "may be merged with other processes' memory (KSM)",
}
"""Those that one check must catch, each for a reason of its own."""
IN_REVERSE = ("late-write-to-a-fork", "lost-source-diff")
SHARE = MemoryPolicy.SHARE
SAMPLED_UNDER_SHARE = (
    "unsealed-copy",
    "writable-shared-memory",
    "shared-mapping",
    "hard-linked-memory",
    "written-under-a-running-fork",
    "late-write-to-a-fork",
)
"""What is another thing there; the rest in `make test-all`."""


WOKEN = ("base", "reverse", "siblings", "live")
"""What begins, in `make test`, with a source that has booted for another test and slept since (but for one run whole); a run with
nothing wrong passes on such a one too.
"""


@pytest.fixture(scope="session")
def kept_small(store_home: Path) -> Kept:
    return keep(store_home.parent / "kept-small", memory_mib=MEMORY_MIN_MIB)


@pytest.fixture
def wake_sources(kept_small: Kept, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Sources are put into the store asleep, and wake, where they would boot."""

    def create(host: Host, name: str, *, memory_mib: int, disk_bytes: int, hypervisor: Hypervisor) -> InstanceInfo:
        assert (memory_mib, disk_bytes, hypervisor) == (MEMORY_MIN_MIB, DISK_BYTES, Hypervisor.QEMU)
        kept_small.put_into(host, name)
        return host.restore(name)

    return lambda: monkeypatch.setattr(Host, "create", create)


def test_a_sound_system_passes(host: Host, wake_sources: Callable[[], None]) -> None:
    if WHOLE or file_system_of(host.home) == "xfs":
        report = run(host.home)
    else:
        wake_sources()
        report = run(host.home, memory_mib=MEMORY_MIN_MIB, scenarios=("base", "reverse"))
    assert report.verdict is Verdict.PASS, render(report)
    assert report.exit_status == 0
    usage = next(result for result in report.results if result.claim.id == "fork-disk-usage")
    if file_system_of(host.home) == "xfs":
        assert usage.verdict is Verdict.PASS
        assert usage.required
    else:
        assert usage.verdict is Verdict.INCONCLUSIVE
        assert not usage.required
        assert usage.reason is not None
        assert "no reflinks" in usage.reason
    assert host.list() == []
    assert [path.name for path in host.home.iterdir() if "verify" in path.name] == []
    _figures_tell_what_happened(report, reflinks=file_system_of(host.home) == "xfs")
    _is_whole_for_people_and_for_machines(report)


def _figures_tell_what_happened(report: Report, *, reflinks: bool) -> None:
    """In the base scenario: who was asleep when, and what a fork and its diff cost on the disk."""
    steps = report.scenarios[0].steps
    surveys = {step.text: step.survey for step in steps}
    assert {step.unseen for step in steps} == {None}
    forked, slept = surveys["forking"], surveys["taking the fork's diff snapshot"]
    deleted = surveys["deleting the running fork"]
    assert forked is not None
    assert slept is not None
    assert deleted is not None
    assert forked.states == slept.states == {"source": "standby", "fork": "standby"}
    assert deleted.states == {"source": "standby"}
    assert forked.parents == {"source": None, "fork": "source"}
    maps = {one.role: one for one in slept.maps}
    own_bytes, shared_bytes = sum(maps["fork"].own), sum(maps["fork"].shared)
    source_bytes = sum(maps["source"].own) + sum(maps["source"].shared)
    assert source_bytes > 100 * MIB
    if reflinks:
        assert (sum(maps["source"].shared) > 100 * MIB, shared_bytes > 100 * MIB) == (True, True)
        assert 0 < own_bytes < 64 * MIB, "the diff, and nothing else"
    else:
        assert shared_bytes == 0
        assert own_bytes > 100 * MIB
    assert slept.disk_bytes is not None
    assert deleted.disk_bytes is not None
    assert slept.disk_bytes > deleted.disk_bytes >= source_bytes


@on_xfs
def test_a_sound_system_passes_where_forks_share_memory(host: Host, wake_sources: Callable[[], None]) -> None:
    if not WHOLE:
        wake_sources()
    report = run(host.home, memory_mib=MEMORY_MIN_MIB, memory_policy=SHARE, scenarios=() if WHOLE else WOKEN)
    assert report.verdict is Verdict.PASS, render(report)
    assert report.host["forks"] == "memory policy share"
    shown = {result.claim.id: result for result in report.results}
    assert "shares nothing" in shown["fork-own-inodes"].claim.title
    assert host.list() == []


@on_xfs
@requires("browser")
def test_a_browser_shows_a_real_report(host: Host, wake_sources: Callable[[], None], tmp_path: Path) -> None:
    wake_sources()
    report = run(host.home, memory_mib=MEMORY_MIN_MIB, scenarios=["siblings"])
    path = tmp_path / "report.html"
    path.write_bytes(page.encode(document(report)))
    with browser() as opened:
        opened.open(path)
        assert opened.complaints == []
        assert opened.ask("document.title") == "PASS: ramet verify"
        assert opened.ask("document.querySelectorAll('.check').length") == len(report.results)
        rows = opened.ask(
            "[...document.querySelectorAll('.family tbody tr')].map(e => e.innerText.split(/[\\s└]+/).join(' '))"
        )
        assert rows[0].split()[0] == "source"
        assert [row.split()[0] for row in rows[1:]] == ["sibling-a", "sibling-b", "sibling-c"]
        assert all(row.endswith(" z R R z R") for row in rows[1:]), "forked, restored, diverged, slept, restored"
        assert opened.ask("document.querySelectorAll('figure').length") >= 4
        assert opened.ask("document.querySelectorAll('rect').length") > 40


def _is_whole_for_people_and_for_machines(report: Report) -> None:
    value = json.loads(encode(report))
    assert value["verdict"] == "PASS"
    assert {"id", "title", "verdict", "evidence"} <= set(value["checks"][0])
    assert all(
        check["evidence"] or (check["verdict"] == "INCONCLUSIVE" and check["reason"]) for check in value["checks"]
    )
    assert value["host"]["kernel"].startswith(os.uname().release)
    text = render(report, width=90)
    assert max(map(len, text.splitlines())) <= 90
    assert all(result.claim.title in text for result in report.results)


@pytest.fixture
def sound_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has failed when a sabotage first strikes."""
    strike_of = sabotage.strike_of

    def checked(broken: Sabotage | None, *, stop_when_caught: bool) -> Callable[[World, Point], None]:
        assert broken is not None
        strike, first = strike_of(broken, stop_when_caught=stop_when_caught), True

        def look_and_strike(world: World, point: Point) -> None:
            nonlocal first
            if first and point in broken.strikes:
                first = False
                assert world.ledger.failed() == []
            strike(world, point)

        return look_and_strike

    monkeypatch.setattr(sabotage, "strike_of", checked)


@pytest.mark.usefixtures("sound_before")
@pytest.mark.parametrize("name", SABOTAGES)
def test_each_sabotage_is_caught_by_the_check_that_names_it(
    name: str, host: Host, wake_sources: Callable[[], None]
) -> None:
    on_ext4 = file_system_of(host.home) == "ext4"
    why_not = SABOTAGES[name].why_not(Hypervisor.QEMU, lacks(host, Hypervisor.QEMU))
    if why_not is not None:
        pytest.skip(why_not)
    if on_ext4 and not WHOLE and name not in SAMPLED_ON_EXT4:
        pytest.skip("on ext4 only in make test-all")
    if name in IN_REVERSE and not WHOLE:
        pytest.skip("one of those that are run at once, below")
    if SABOTAGES[name].scenario in WOKEN and not WHOLE:
        wake_sources()
    report = run(host.home, memory_mib=MEMORY_MIN_MIB, sabotage=name, stop_when_caught=not WHOLE)
    assert report.verdict is Verdict.FAIL
    assert report.exit_status == 1
    assert set(SABOTAGES[name].caught_by) <= set(report.failed()), render(report)
    if name in TOLD_APART:
        told = {result.claim.id: str(result.reason) for result in report.results}
        assert TOLD_APART[name] in told["vmm-confined"]
    assert host.list() == []


@on_xfs
@pytest.mark.usefixtures("sound_before")
@pytest.mark.parametrize("name", SABOTAGES if WHOLE else SAMPLED_UNDER_SHARE)
def test_so_it_is_where_forks_share_memory(name: str, host: Host, wake_sources: Callable[[], None]) -> None:
    why_not = SABOTAGES[name].why_not(Hypervisor.QEMU, lacks(host, Hypervisor.QEMU), SHARE)
    if why_not is not None:
        pytest.skip(why_not)
    if SABOTAGES[name].scenario in WOKEN and not WHOLE:
        wake_sources()
    report = run(host.home, memory_mib=MEMORY_MIN_MIB, memory_policy=SHARE, sabotage=name, stop_when_caught=not WHOLE)
    assert set(SABOTAGES[name].caught_by) <= set(report.failed()), render(report)
    assert host.list() == []


MATRIX = f"""
import sys
from contextlib import suppress
from pathlib import Path
from ramet.cli import signals
from ramet.verify import run_all_sabotages
if __name__ == "__main__":
    signals.install()
    say = lambda text: print(text, flush=True)
    try:
        run_all_sabotages(Path(sys.argv[1]), memory_mib={MEMORY_MIN_MIB}, names={IN_REVERSE}, on_progress=say)
    finally:
        signals.over()
"""


@on_xfs
def test_the_matrix_is_of_runs_at_once(host: Host) -> None:
    """Each in a process of its own; that the others are caught is for the tests above."""
    matrix = run_all_sabotages(host.home, memory_mib=MEMORY_MIN_MIB, names=IN_REVERSE)
    assert {row.sabotage: row.caught for row in matrix.rows} == dict.fromkeys(IN_REVERSE, True), render(matrix)
    assert host.list() == []


@on_xfs
def test_a_matrix_that_is_ended_removes_what_its_runs_have_made(host: Host, tmp_path: Path) -> None:
    """The signal reaches the first process alone."""
    script = tmp_path / "matrix.py"
    script.write_text(MATRIX)
    process = subprocess.Popen(
        [sys.executable, script, host.home],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "RAMET_TEST_MARK": str(tmp_path)},
    )
    assert process.stdout is not None
    with process, process.stdout as told:
        for line in told:
            if b"sabotage 2 of 2" in line:
                break
        wait_until(lambda: len(host.list()) >= 2, 180, what="both runs to have a guest")
        assert len(marked(tmp_path)) >= 4, "the first process, and two runs with a VMM each"
        process.terminate()
        assert process.wait(timeout=180) != 0
    assert host.list() == []
    # Python's own resource tracker ends a moment after its parent: once it reads the end of a pipe.
    wait_until(lambda: not marked(tmp_path), 60, what="every process that descends from the first to end")


def marked(mark: Path) -> list[int]:
    """The processes that descend from one that was started with this mark."""
    found = []
    for pid in evidence.processes():
        with suppress(OSError):
            if f"RAMET_TEST_MARK={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes():
                found.append(pid)
    return found


def test_every_check_has_a_sabotage_that_fails_it() -> None:
    checked = {claim for scenario in SCENARIOS.values() for claim in scenario.claims}
    assert checked == set(CLAIMS)
    caught = {claim for sabotage in SABOTAGES.values() for claim in sabotage.caught_by}
    assert checked - caught == set()
    assert set(sabotage_names()) == set(SABOTAGES)


def test_it_cannot_run_without_an_image_or_a_store(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(Exception, match="not a directory"):
        run(blocked)


@requires("loopfs", "root")
@pytest.mark.skipif(not WHOLE, reason="in make test-all")
def test_the_base_scenario_on_btrfs() -> None:
    """Where ``maps`` prints another device than stat gives (H74), and extents are addresses of btrfs' own."""
    with loopfs.loopfs("btrfs", size_mib=4096) as mount:
        report = run(guest_images.give(mount / "home"), scenarios=["base", "reverse"])
        results = {result.claim.id: result for result in report.results}
        assert report.verdict is Verdict.PASS, render(report)
        assert "btrfs, reflinks" in report.host["store"]
        assert results["fork-disk-usage"].verdict is Verdict.PASS
        assert len(results["vmm-maps-privately"].facts) > 1
