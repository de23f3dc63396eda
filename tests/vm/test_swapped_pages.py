"""Pages that were swapped out are found and read like the others (H14), of a process and of a VMM. Swap is switched on for it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ramet import Host
from ramet.linux import pagemap, procfs
from ramet.linux.pagemap import Method, Region
from ramet.paths import SnapshotPaths
from ramet.process import wait_until
from ramet.snapshots import copies_in_ram
from ramet.snapshots.memory import OpenCopyInRam
from ramet.snapshots.scatter import Scatter
from ramet.verify import run
from ramet.verify.checks import Verdict
from ramet.verify.reports.text import render
from tests.capabilities import requires
from tests.file_systems import on_ext4
from tests.unit.children import Mapper
from tests.unit.snapshots.memory_files import PAGES, capture, capture_memory, full_base
from tools import loopfs

pytestmark = requires("loopfs", "root")

MADV_PAGEOUT = 21
PAGE = 4096


@pytest.fixture(scope="module")
def swap() -> Iterator[None]:
    """Swap on a file of its own, for the tests of this file."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    tools = {name: shutil.which(name, path=path) for name in ("mkswap", "swapon", "swapoff")}
    if not all(tools.values()):
        pytest.skip(f"needs mkswap, swapon and swapoff: {tools}")
    with loopfs.loopfs("ext4", size_mib=768) as mount:
        file = mount / "swap"
        with file.open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, 512 << 20)
        file.chmod(0o600)
        subprocess.run([str(tools["mkswap"]), str(file)], check=True, capture_output=True)
        try:
            subprocess.run([str(tools["swapon"]), str(file)], check=True, capture_output=True)
        except subprocess.CalledProcessError as err:
            pytest.skip(f"this kernel does not swap to a file here: {err.stderr.decode().strip()}")
        try:
            yield
        finally:
            subprocess.run([str(tools["swapoff"]), str(file)], check=True)


def swapped_bytes(pid: int) -> int:
    return procfs.smaps_rollup(pid)["Swap"]


def page_out(child: Mapper, pages: int) -> None:
    """Have at least so many of its pages in swap. A CPU keeps the newest back for a while, and then the advice passes them over
    (mm/swap.c, ``lru_add``), so it is given until it is taken.
    """

    def is_out() -> bool:
        child.advise(0, PAGES * PAGE, MADV_PAGEOUT)
        return swapped_bytes(child.pid) >= pages * PAGE

    wait_until(is_out, 30, what="pages in swap")


@pytest.mark.usefixtures("swap")
@pytest.mark.parametrize("method", [pytest.param("scan", marks=requires("pagemap-scan")), pytest.param("pagemap")])
def test_swapped_pages_are_written_pages(tmp_path: Path, method: Method) -> None:
    base = full_base(tmp_path / "base")
    with Mapper(base) as child:
        child.write(4 * PAGE, os.urandom(20 * PAGE))
        child.write(40 * PAGE, os.urandom(PAGE))
        view = child.read()
        page_out(child, 10)
        [mapping] = procfs.mappings_of_file(child.pid, base)
        found = pagemap.written_regions(child.pid, mapping.start, mapping.end, method=method)
        expected = [(4, 24), (40, 41)]
        assert found == [Region(mapping.start + low * PAGE, mapping.start + high * PAGE) for low, high in expected]
        capture(child, base, tmp_path / "result")
        assert (tmp_path / "result").read_bytes() == view


@pytest.mark.usefixtures("swap")
@pytest.mark.parametrize("method", [pytest.param("scan", marks=requires("pagemap-scan")), pytest.param("pagemap")])
def test_of_a_copy_in_ram_only_what_was_written_is_the_processs(tmp_path: Path, method: Method) -> None:
    """Its own pages go to swap too, and are the file's: what a fork shares is no part of what it has written."""
    paths = SnapshotPaths(dir=tmp_path)
    full_base(paths.memory)
    with copies_in_ram.made(paths) as (fd, _):
        shared = Path(f"/proc/self/fd/{fd}")
        with Mapper(shared) as child:
            child.write(4 * PAGE, os.urandom(8 * PAGE))
            view = child.read()
            page_out(child, 20)
            [mapping] = procfs.mappings_of_file(child.pid, shared)
            found = pagemap.written_regions(child.pid, mapping.start, mapping.end, method=method)
            assert found == [Region(mapping.start + 4 * PAGE, mapping.start + 12 * PAGE)]
            capture_memory(
                child.vmm,
                mapped_file=shared,
                into=tmp_path / "result",
                base_is_empty=False,
                copy_in_ram=OpenCopyInRam(fd=fd, same=paths.memory),
                scatter=Scatter(),
            )
            assert (tmp_path / "result").read_bytes() == view


@on_ext4
@pytest.mark.usefixtures("swap")
def test_a_vmm_that_was_swapped_out_sleeps_and_wakes_whole(host: Host) -> None:
    report = run(host.home, scenarios=["swapped"])
    assert report.verdict is Verdict.PASS, render(report)
    (result,) = report.results
    assert result.verdict is Verdict.PASS
    (look,) = result.facts
    assert all(int(mib) >= 16 for mib in re.findall(r"([0-9]+) MiB", look.at)), look.at


@on_ext4
@pytest.mark.usefixtures("swap")
def test_a_page_that_is_lost_in_swap_is_noticed(host: Host) -> None:
    report = run(host.home, sabotage="lost-in-swap")
    assert report.failed() == ("swapped-pages-are-kept",), render(report)
