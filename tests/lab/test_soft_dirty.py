"""A guest that runs is copied ahead of its capture, by the kernel's soft-dirty bits, which the lab's kernel has.

The writes of a guest under KVM, and those that QEMU makes for it as it reads its disk.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest

from ramet import Host
from ramet.hypervisors.qemu.driver import QemuDriver
from ramet.linux import pagemap, procfs, soft_dirty
from ramet.model import MIB, Accelerator, Hypervisor, InstanceInfo
from ramet.paths import InstancePaths
from ramet.snapshots import memory
from ramet.snapshots.dirty import find_dirty, size_of
from ramet.snapshots.memory import begin, finish
from ramet.snapshots.scatter import Scatter
from tests import artifacts
from tests.capabilities import requires
from tests.file_systems import WHOLE, on_xfs
from tests.unit.children import Mapper, identity
from tests.unit.snapshots.memory_files import ONES, PAGES, ZEROS, full_base
from tests.vm.guests import sh

pytestmark = [requires("kvm", "root"), on_xfs]
PAGE = 4096
FILLED_MIB = 96
LOAD = """
for job in 1 2; do (
    turn=$job
    while :; do
        turn=$((turn + 1)); ramet-fill /ram/load.$job 6291456 $turn
        dd if=/data/file of=/dev/null bs=64k 2>/dev/null; echo 1 >/proc/sys/vm/drop_caches
        dd if=/dev/urandom of=/data/file bs=64k count=32 conv=fsync 2>/dev/null
    done ) >/dev/null 2>&1 & done
"""


@pytest.fixture(autouse=True)
def noted() -> None:
    if not soft_dirty.is_there():
        assert not artifacts.in_the_lab(), "the lab's kernel notes what is written"
        pytest.skip("this host's kernel has no soft-dirty bits")


def test_the_kernel_notes_what_is_written_after_they_were_cleared(host: Host, tmp_path: Path) -> None:
    base = full_base(tmp_path / "base")
    with Mapper(base) as child:
        child.write(0, ONES * 10)
        assert soft_dirty.clear(child.pid)
        child.write(3 * PAGE, ZEROS * 2)
        child.write(20 * PAGE, ONES)
        assert len(child.read()) == PAGES * PAGE, "reading notes nothing"
        (low, high) = bounds(child.pid, base)
        found = pagemap.written_regions(child.pid, low, high, since_cleared=True)
        assert [(one.start - low, one.end - low) for one in found] == [(3 * PAGE, 5 * PAGE), (20 * PAGE, 21 * PAGE)]


def bounds(pid: int, path: Path) -> tuple[int, int]:
    (mapping,) = procfs.mappings_of_file(pid, path)
    return mapping.start, mapping.end


@pytest.fixture
def loaded(host: Host) -> InstanceInfo:
    """``web``, with much that does not change and two that write all the time: memory, and through the disk."""
    host.create("web", memory_mib=256, disk_bytes=64 * MIB, hypervisor=Hypervisor.QEMU, accelerator=Accelerator.KVM)
    sh(
        host,
        "web",
        f"ramet-fill /ram/filled {FILLED_MIB * MIB} 7; dd if=/dev/urandom of=/data/file bs=64k count=32; sync",
    )
    sh(host, "web", LOAD)
    return host.get("web")


def test_a_file_that_was_begun_while_the_guest_wrote_equals_one_that_was_not(
    host: Host, loaded: InstanceInfo, tmp_path: Path
) -> None:
    paths = InstancePaths(dir=host.home / "instances" / loaded.id)
    assert loaded.pid is not None
    vmm = identity(loaded.pid)
    with QemuDriver().connect(paths.run) as monitor:
        for turn in range(4):
            into, whole = tmp_path / f"into{turn}", tmp_path / f"whole{turn}"
            begun = begin(vmm, mapped_file=paths.memory, into=into, scatter=Scatter(), guest_runs=True)
            time.sleep(0.3)
            monitor.stop_vcpus()
            try:
                file, dirty = finish(vmm, begun, mapped_file=paths.memory, base_is_empty=True, scatter=Scatter())
                again = begin(vmm, mapped_file=paths.memory, into=whole, scatter=Scatter())
                _, expected = finish(vmm, again, mapped_file=paths.memory, base_is_empty=True, scatter=Scatter())
                total = size_of(find_dirty(vmm, paths.memory))
            finally:
                monitor.resume_vcpus()
            assert begun.copied is not None
            assert size_of(begun.copied) > FILLED_MIB * MIB
            assert into.read_bytes() == whole.read_bytes()
            assert pages(expected) <= pages(dirty), "what is summed up again"
            assert file.written_bytes <= total + 4 * MIB
            into.unlink()
            whole.unlink()


def pages(regions: memory.Regions) -> set[int]:
    return {page for low, end in regions for page in range(low // PAGE, end // PAGE)}


@pytest.mark.skipif(not WHOLE, reason="in make test-all")
def test_a_live_fork_copies_little_in_its_pause(
    host: Host, loaded: InstanceInfo, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what it copies then is what was written last: the fork wakes as the source was."""
    caplog.set_level(logging.DEBUG, logger="ramet.snapshots.memory")
    sh(host, "web", "echo before >/ram/mark; sync")
    forked = host.fork("web", "twin")
    (said,) = [record.args for record in caplog.records if record.name == memory.__name__]
    assert isinstance(said, tuple)
    ahead, rest = said
    assert isinstance(ahead, int)
    assert isinstance(rest, int)
    assert ahead > FILLED_MIB * MIB
    assert rest < 48 * MIB
    assert forked.source_pause_s is not None
    host.restore("twin")
    assert sh(host, "twin", "cat /ram/mark") == "before"
    assert sh(host, "twin", "ramet-fill --sum /ram/filled") == sh(host, "web", "ramet-fill --sum /ram/filled")
    host.standby("web")
    host.restore("web")
    assert sh(host, "web", "cat /ram/mark") == "before"
