"""The fixture ladder (file_system > store_home > host > standby > running), and what a test that needs something meets.

A test says what it needs with ``@requires(…)`` (capabilities.py); the header prints each capability with yes or no and why.
``--require=all`` (the default where $CI is set), or ``--require=qemu,xfs``, turns a skip for lack of it into a failure.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from ramet import Host
from ramet.linux.mounts import file_system_of
from ramet.model import InstanceInfo
from tests import artifacts, guest_images, in_lab
from tests import kept as kept_guests
from tests.capabilities import NEVER_REQUIRED, PROBES, needs, why_missing, why_no_kvm_here
from tests.heeding import heeded
from tests.kept import Kept
from tools import loopfs

STATE_DIR = Path(__file__).parent.parent / ".state"
VM_DIRECTORIES = ("vm", "lab")


# -- what tests need -------------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require",
        default="all" if os.environ.get("CI") else "",
        help="comma-separated capabilities (or 'all') whose lack is a failure instead of a skip; 'all' where $CI is set",
    )


def pytest_configure(config: pytest.Config) -> None:
    reports_fd = os.environ.pop(in_lab.REPORTS_FD, None)
    if reports_fd is not None:
        config.pluginmanager.register(in_lab.Reporting(config, int(reports_fd)), "lab-reporting")
        config.pluginmanager.register(in_lab.Asked(int(os.environ.pop(in_lab.REQUESTS_FD))), "lab-asked")
    elif not artifacts.in_the_lab():
        config.pluginmanager.register(in_lab.LabRunner(config), "lab-runner")


def pytest_report_header() -> list[str]:
    lines = []
    for name in PROBES:
        why = why_missing(name)
        lines.append(f"{name:<13} {'yes' if why is None else f'no: {why}'}")
    if why_no_kvm_here() and not why_missing("kvm"):
        lines.append(f"{'':<13} KVM is the lab's: {why_no_kvm_here()}")
    return lines


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How much was tried, where that is not the same each time."""
    reports = terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", [])
    told = [value for report in reports for key, value in report.user_properties if key == artifacts.TOLD]
    if told:
        terminalreporter.section("what was tried")
        for line in told:
            terminalreporter.write_line(str(line))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name in VM_DIRECTORIES or needs(item) & {"qemu", "kvm"}:
            item.add_marker(pytest.mark.vm)
        if "kvm" in needs(item):
            item.add_marker(pytest.mark.lab)


def pytest_runtest_setup(item: pytest.Item) -> None:
    required = item.config.getoption("--require").split(",")
    for capability in needs(item):
        why = why_missing(capability)
        if why is None:
            continue
        if capability in required or ("all" in required and capability not in NEVER_REQUIRED):
            pytest.fail(f"{capability} is required and missing: {why}", pytrace=False)
        pytest.skip(f"needs {capability}: {why}")


# -- the ladder ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session", params=["ext4", "xfs"])
def file_system(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A real file system on a loop device, for the whole session: without reflinks, and with them."""
    if artifacts.in_the_lab():
        assert file_system_of(in_lab.DISK).startswith(request.param), "the lab has another disk"
        yield in_lab.DISK
        return
    with loopfs.loopfs(request.param) as mount:
        yield mount


@pytest.fixture(scope="session")
def store_home(file_system: Path) -> Path:
    """A store with the image ``micro`` on that file system."""
    return guest_images.give(file_system / "home")


@pytest.fixture(scope="session")
def ramet_home(store_home: Path) -> Path:
    """Where the fixtures of ``ramet.testing`` work."""
    return store_home


@pytest.fixture
def host(ramet_host: Host, request: pytest.FixtureRequest) -> Iterator[Host]:
    """A Host whose instances and snapshots are removed after the test; what a failed one leaves is kept as artifacts."""
    assert ramet_host.list() == []
    yield ramet_host
    if artifacts.failed(request.node):
        artifacts.keep(ramet_host, request.node.nodeid)
    _empty(ramet_host)


@pytest.fixture(scope="session")
def kept(store_home: Path) -> Kept:
    """A guest that has booted and sleeps, beside the store."""
    return kept_guests.keep(store_home.parent / "kept")


@pytest.fixture
def booted(host: Host) -> InstanceInfo:
    """``web``, with a mark on its disk and one in its memory, which has never slept."""
    info = host.create("web", disk_bytes=kept_guests.DISK_BYTES)
    result = host.exec("web", ["sh", "-c", kept_guests.MARKS])
    assert result.exit_status == 0
    return info


@pytest.fixture
def standby(host: Host, kept: Kept) -> InstanceInfo:
    """``web``, asleep on its first snapshot, with a mark on its disk and one in its memory."""
    return kept.put_into(host)


@pytest.fixture
def running(host: Host, standby: InstanceInfo) -> InstanceInfo:
    """``web``, awake."""
    return host.restore(standby.name)


def _empty(host: Host) -> None:
    for info in host.list():
        host.remove(info.name, force=True)
    for snapshot in host.snapshots():
        for name in snapshot.names:
            host.snapshot_remove(name)
    left = [path for place in ("instances", "snapshots", "tmp") for path in (host.home / place).iterdir()]
    assert left == [], "the store is not empty after its last instance was removed"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    artifacts.remember(item, report)
    return report


@pytest.fixture(scope="session", autouse=True)
def heeded_signals() -> Iterator[None]:
    """What tests start has its signals at their defaults, whatever we were started with."""
    with heeded():
        yield


@pytest.fixture(scope="session", autouse=True)
def no_stray_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No VMM of a store of this session is left at its end."""
    ours = (f"{loopfs.PREFIX}{os.getpid()}-", str(tmp_path_factory.getbasetemp()))
    yield
    left = artifacts.vmm_pids(*ours)
    assert not left, f"VMMs were left behind: {sorted(left)}"
