"""The fixture ladder (file_system > store_home > host > running > standby) and the host's capabilities.

A test says what it needs with ``@requires(…)``; the header prints each capability with yes or no and why. ``--require=all`` (the
default where $CI is set), or ``--require=qemu,xfs``, turns a skip for lack of it into a failure.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from ramet import Host
from ramet.errors import RametError
from ramet.linux.mounts import file_system_of
from ramet.model import InstanceInfo
from tests import artifacts, guest_images, in_lab
from tools import loopfs

STATE_DIR = Path(__file__).parent.parent / ".state"
VM_DIRECTORIES = ("vm", "lab")


def requires(*capabilities: str) -> pytest.MarkDecorator:
    """Mark a test with what it needs of the host."""
    return pytest.mark.requires(*capabilities)


# -- capabilities -------------------------------------------------------------------------------------------------


def _qemu() -> str | None:
    from ramet.hypervisors.qemu import driver

    try:
        driver.program()
    except RametError as err:
        return err.message
    return None


def _firecracker() -> str | None:
    from ramet.hypervisors.firecracker import driver

    try:
        driver.version(driver.program())
    except RametError as err:
        return err.message
    return None


def why_no_kvm_here() -> str | None:
    """None if this host, or the lab that we run in, has KVM of its own."""
    from ramet.hypervisors import kvm

    return kvm.why_not_usable()


def _kvm() -> str | None:
    """Of this host, or in the lab."""
    here = why_no_kvm_here()
    lab_lacks = [why for why in (why_missing("qemu"), why_missing("gcc")) if why is not None]
    return f"{here}; and no lab: {'; '.join(lab_lacks)}" if here and lab_lacks else None


def _compiler() -> str | None:
    return None if shutil.which("gcc") else "gcc was not found"


def _clang() -> str | None:
    return None if shutil.which("clang") else "clang was not found"


def _root() -> str | None:
    return None if os.geteuid() == 0 else "not root"


def _pagemap_scan() -> str | None:
    from ramet.linux.pagemap import has_pagemap_scan

    return None if has_pagemap_scan() else f"kernel {os.uname().release} lacks it"


PROBES: dict[str, Callable[[], str | None]] = {
    "qemu": _qemu,
    "firecracker": _firecracker,
    "kvm": _kvm,
    "loopfs": loopfs.why_not,
    "root": _root,
    "gcc": _compiler,
    "clang": _clang,
    "pagemap-scan": _pagemap_scan,
}
NEVER_REQUIRED = frozenset({"pagemap-scan"})
"""What ``--require=all`` does not mean: no package can bring it."""


@functools.cache
def why_missing(capability: str) -> str | None:
    return PROBES[capability]()


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name in VM_DIRECTORIES or needs(item) & {"qemu", "kvm"}:
            item.add_marker(pytest.mark.vm)


def pytest_runtest_setup(item: pytest.Item) -> None:
    required = item.config.getoption("--require").split(",")
    for capability in needs(item):
        why = why_missing(capability)
        if why is None:
            continue
        if capability in required or ("all" in required and capability not in NEVER_REQUIRED):
            pytest.fail(f"{capability} is required and missing: {why}", pytrace=False)
        pytest.skip(f"needs {capability}: {why}")


def needs(item: pytest.Item) -> set[str]:
    """The capabilities that a test needs of the host."""
    found = {str(name) for mark in item.iter_markers("requires") for name in mark.args}
    if "file_system" in getattr(item, "fixturenames", ()):
        found |= {"loopfs", "qemu"}
    return found


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


@pytest.fixture
def host(store_home: Path, request: pytest.FixtureRequest) -> Iterator[Host]:
    """A Host whose instances and snapshots are removed after the test; what a failed one leaves is kept as artifacts."""
    host = Host(store_home)
    assert host.list() == []
    yield host
    if artifacts.failed(request.node):
        artifacts.keep(host, request.node.nodeid)
    _empty(host)


@pytest.fixture
def running(host: Host) -> InstanceInfo:
    """``web``, booted, with a mark on its disk and one in its memory."""
    info = host.create("web", disk_bytes=64 << 20)
    result = host.exec("web", ["sh", "-c", "echo disk-source >/data/mark; echo ram-source >/ram/mark; sync"])
    assert result.exit_status == 0
    return info


@pytest.fixture
def standby(host: Host, running: InstanceInfo) -> InstanceInfo:
    """``web``, asleep."""
    return host.standby(running.name)


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
def no_stray_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No VMM of a store of this session is left at its end."""
    ours = (f"{loopfs.PREFIX}{os.getpid()}-", str(tmp_path_factory.getbasetemp()))
    yield
    left = artifacts.vmm_pids(*ours)
    assert not left, f"VMMs were left behind: {sorted(left)}"
