"""Memory that is not captured: not mapped once and privately, of a VMM that is gone, or where the host refuses."""

from __future__ import annotations

import itertools
import mmap
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from ramet.errors import HostError, VmmDiedError, VmmError
from ramet.linux import procmem
from ramet.linux.pagemap import Region
from ramet.model import PAGE_BYTES
from ramet.snapshots import dirty as module
from ramet.snapshots.dirty import find_dirty
from tests.unit.children import Mapper, own_descriptors
from tests.unit.snapshots.memory_files import ONES, PAGES, Fingerprint, capture, full_base, hole


@pytest.mark.parametrize(
    "pieces",
    [
        [(0, PAGES - 1)],
        [(1, PAGES - 1)],
        [(0, 20), (30, PAGES - 30)],
        [(0, PAGES // 2), (0, PAGES // 2)],
        [(0, PAGES), (8, 8)],
        [(0, 40), (30, PAGES - 30)],
    ],
    ids=["end missing", "beginning missing", "gap", "half twice", "part twice", "overlap"],
)
def test_a_file_that_is_not_mapped_exactly_once_is_refused(tmp_path: Path, pieces: list[tuple[int, int]]) -> None:
    """Part of it would be stale, or of two answers one would win; the sum of the lengths alone does not tell."""
    base, result = full_base(tmp_path / "base"), tmp_path / "result"
    scaled = [(PAGE_BYTES * start, PAGE_BYTES * length) for start, length in pieces]
    with Mapper(base, pieces=scaled) as child, pytest.raises(VmmError, match="does not map each of the"):
        capture(child, base, result)
    assert not result.exists()


def test_a_file_that_is_not_mapped_at_all_is_refused(tmp_path: Path) -> None:
    base = full_base(tmp_path / "base")
    other = full_base(tmp_path / "other")
    with Mapper(other) as child, pytest.raises(VmmError, match="0 mappings"):
        capture(child, base, tmp_path / "result")


def test_a_shared_mapping_is_refused(tmp_path: Path) -> None:
    """H06: the guest writes into the file itself, and nothing would be found dirty."""
    base = full_base(tmp_path / "base")
    with Mapper(base, flags=mmap.MAP_SHARED) as child:
        child.write(0, ONES)
        with pytest.raises(VmmError, match="shared"):
            capture(child, base, tmp_path / "result")
    assert not (tmp_path / "result").exists()


# -- a VMM that is gone, or ends meanwhile ------------------------------------------------------------------------


def test_a_vmm_that_is_gone_or_another_process(tmp_path: Path) -> None:
    """H45: also a zombie, and a recycled pid whose process maps the same file."""
    base = full_base(tmp_path / "base")
    with Mapper(base) as child:
        earlier = msgspec.structs.replace(child.vmm, start_time_ticks=child.vmm.start_time_ticks - 1)
        with pytest.raises(VmmDiedError):
            find_dirty(earlier, base)
        child.end()
        with pytest.raises(VmmDiedError):
            find_dirty(child.vmm, base)
    with pytest.raises(VmmDiedError):
        find_dirty(child.vmm, base)


def test_a_vmm_that_ends_during_the_scan_has_not_written_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H12: kernels differ in what they answer for a process whose memory has just gone; an empty list must not pass."""
    base = full_base(tmp_path / "base")

    def nothing(pid: int, start: int, end: int, *, since_cleared: bool) -> list[Region]:
        child.end()
        return []

    monkeypatch.setattr(module, "written_regions", nothing)
    with Mapper(base) as child:
        child.write(0, ONES)
        with pytest.raises(VmmDiedError, match="ended"):
            capture(child, base, tmp_path / "result")
    assert not (tmp_path / "result").exists()


def test_a_vmm_that_ends_during_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = full_base(tmp_path / "base")
    before = own_descriptors()
    real = procmem.read_into

    def read_into(fd: int, address: int, buffer: memoryview) -> None:
        child.end()
        real(fd, address, buffer)

    monkeypatch.setattr(procmem, "read_into", read_into)
    with Mapper(base) as child:
        child.write(0, ONES)
        with pytest.raises(VmmDiedError, match="ended while its memory was read"):
            capture(child, base, tmp_path / "result")
    assert own_descriptors() == before


@pytest.fixture
def is_waited_for(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Copies are made a page at a time, by two threads; set once those are waited for: by then nothing must be left to copy."""
    event = threading.Event()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            event.set()
            super().shutdown(wait, cancel_futures=cancel_futures)

    monkeypatch.setattr(module, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(module, "BUFFER_BYTES", PAGE_BYTES)
    monkeypatch.setattr(module, "COPY_THREADS", 2)
    return event


@pytest.mark.parametrize("ending", [KeyboardInterrupt, HostError])
def test_a_copy_in_threads_ends_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_waited_for: threading.Event, ending: type[BaseException]
) -> None:
    """Ctrl-C is raised in the main thread, which waits for the others; an error in one of those."""
    base = full_base(tmp_path / "base")
    begun: list[int] = []
    numbers = itertools.count(1)

    def read_into(_fd: int, address: int, _buffer: memoryview) -> None:
        begun.append(address)
        number = next(numbers)
        if number == 3 and ending is HostError:
            raise OSError(5, "Input/output error")
        if number == 3:
            os.kill(os.getpid(), signal.SIGINT)
        if number >= 3:
            is_waited_for.wait(10)

    monkeypatch.setattr(procmem, "read_into", read_into)
    with Mapper(base) as child:
        child.write(0, ONES * PAGES)
        with pytest.raises(ending):
            capture(child, base, tmp_path / "result")
    assert 3 <= len(begun) < PAGES // 2


def test_a_second_interruption_waits_for_the_other_threads_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_waited_for: threading.Event
) -> None:
    """Python takes a thread for ended whose join was interrupted: it would write on into a file that is deleted."""
    base = full_base(tmp_path / "base")
    numbers = itertools.count(1)
    at_work: set[int] = set()

    def read_into(_fd: int, address: int, _buffer: memoryview) -> None:
        at_work.add(address)
        number = next(numbers)
        if number == 3:
            os.kill(os.getpid(), signal.SIGINT)
        if number >= 3:
            is_waited_for.wait(10)
        if number == 3:
            time.sleep(0.2)  # it alone is waited for by now
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)
        at_work.discard(address)

    monkeypatch.setattr(procmem, "read_into", read_into)
    with Mapper(base) as child:
        child.write(0, ONES * PAGES)
        with pytest.raises(KeyboardInterrupt):
            capture(child, base, tmp_path / "result")
        assert at_work == set()


def test_a_vmm_that_has_ended_is_told_from_one_that_we_may_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is not root gets EACCES for a zombie's page map."""
    base = full_base(tmp_path / "base")

    def refuse(pid: int, start: int, end: int, *, since_cleared: bool) -> list[Region]:
        child.end()
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module, "written_regions", refuse)
    with Mapper(base) as child, pytest.raises(VmmDiedError):
        find_dirty(child.vmm, base)


@pytest.mark.parametrize("call", ["open_memory", "read_into"])
def test_memory_that_we_may_not_read_is_said_with_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Yama's ptrace_scope refuses /proc/PID/mem, and not /proc/PID/pagemap."""

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(procmem, call, refuse)
    base = full_base(tmp_path / "base")
    with Mapper(base) as child:
        child.write(0, ONES)
        with pytest.raises(HostError, match="does not let us read the memory") as caught:
            capture(child, base, tmp_path / "result")
    assert "ptrace" in str(caught.value.hint)


def test_memory_that_cannot_be_read_although_the_vmm_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(procmem, "read_into", fail)
    base = full_base(tmp_path / "base")
    with Mapper(base) as child:
        child.write(0, ONES)
        with pytest.raises(HostError, match="Could not read the memory of process"):
            capture(child, base, tmp_path / "result")


def test_a_mapped_file_that_is_gone_is_a_host_error(tmp_path: Path) -> None:
    base = full_base(tmp_path / "base")
    with Mapper(base) as child:
        base.unlink()
        with pytest.raises(HostError, match="No such file"):
            find_dirty(child.vmm, base)


def test_an_empty_mapped_file_is_refused(tmp_path: Path) -> None:
    base = full_base(tmp_path / "base")
    empty = hole(tmp_path / "empty", 0)
    with Mapper(base) as child, pytest.raises(HostError, match="cannot be mapped"):
        find_dirty(child.vmm, empty)


def test_a_write_error_is_the_host_s_and_the_base_is_untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = full_base(tmp_path / "base")
    before = Fingerprint.of(base)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with Mapper(base) as child:
        child.write(0, ONES)
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(HostError, match=r"write guest memory to .*result: No space left") as caught:
            capture(child, base, tmp_path / "result")
    assert caught.value.code == "no-space"
    assert Fingerprint.of(base) == before
