"""The filter of system calls: its numbers are the kernel's, and what it refuses is refused with EPERM, whatever else is."""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ramet.linux import credentials, seccomp
from ramet.model import MIB
from tests.capabilities import requires

HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
NEWER_THAN_THE_HEADERS = {"fchmodat2", "setxattrat", "removexattrat", "file_setattr"}


@requires("gcc")
def test_the_numbers_are_the_kernels() -> None:
    known = dict(re.findall(r"#define __NR_(\w+) (\d+)", HEADER.read_text()))
    wanted = {name: str(number) for name, number in seccomp.REFUSED.items()}
    wanted |= {name: str(number) for name, (number, _) in seccomp.ALLOWED_ONLY_WITH.items()}
    wanted |= {
        "socket": str(seccomp.SOCKET),
        "clone3": str(seccomp.CLONE3),
        "madvise": str(seccomp.MADVISE),
        "rt_sigaction": str(seccomp.RT_SIGACTION),
    }
    missing = {name for name in wanted if name not in known}
    assert missing <= NEWER_THAN_THE_HEADERS
    assert {name: known[name] for name in wanted if name not in missing} == {
        name: number for name, number in wanted.items() if name not in missing
    }


def filtered(action: Callable[[], object], *, small_pages_of_bytes: int | None = None) -> object:
    """What came of an action in a thread with the filter: its result, or its errno."""
    found: list[object] = []

    def run() -> None:
        credentials.forbid_new_privileges()
        seccomp.restrict_this_thread(small_pages_of_bytes=small_pages_of_bytes)
        try:
            found.append(action())
        except OSError as err:
            found.append(errno.errorcode[err.errno or 0])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


@requires("seccomp")
def test_what_is_refused_is_refused_by_the_filter(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long

    def call(number: int) -> str:
        ctypes.set_errno(0)
        return "done" if libc.syscall(number, -1, -1, -1, -1) >= 0 else errno.errorcode[ctypes.get_errno()]

    assert filtered(lambda: [name for name, number in seccomp.REFUSED.items() if call(number) != "EPERM"]) == []
    assert filtered(lambda: path.chmod(0o700)) == "EPERM"
    assert path.read_bytes() == b"content"


@requires("seccomp")
def test_what_a_vmm_needs_is_left(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")

    def needs() -> str:
        with path.open("r+b") as stream:
            stream.truncate(3)
        path.rename(tmp_path / "other")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(tmp_path / "socket"))
            sock.listen()
        resource.setrlimit(resource.RLIMIT_CORE, resource.getrlimit(resource.RLIMIT_CORE))
        return str(subprocess.run(["true"], check=False).returncode)

    assert filtered(needs) == "0"
    assert filtered(lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CORE)) == "EPERM"
    for refused in (
        lambda: socket.socket(socket.AF_INET),
        lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
        lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM),
        lambda: os.sched_setaffinity(os.getppid(), {0}),
    ):
        assert filtered(refused) == "EPERM"
    assert filtered(lambda: len(socket.socketpair())) == 2
    assert filtered(lambda: os.sched_setaffinity(0, os.sched_getaffinity(0))) is None


@requires("seccomp")
def test_huge_pages_are_refused_for_the_memory_alone() -> None:
    def advise(size: int, advice: int) -> int:
        with mmap.mmap(-1, size) as mapped:
            mapped.madvise(advice)
        return size

    guest = 4 * MIB
    refused = functools.partial(advise, guest, seccomp.MADV_HUGEPAGE)
    assert filtered(refused) == guest
    assert filtered(refused, small_pages_of_bytes=guest) == "EPERM"
    assert filtered(refused, small_pages_of_bytes=guest + (4 << 30)) == guest
    assert filtered(lambda: advise(guest, mmap.MADV_DONTFORK), small_pages_of_bytes=guest) == guest
    assert filtered(lambda: advise(guest + 4096, seccomp.MADV_HUGEPAGE), small_pages_of_bytes=guest) == guest + 4096


ENDS_AT_FILE_LIMIT = """
import os, resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
signal.signal(signal.SIGUSR1, lambda *_: print("others are handled", flush=True))
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
try:
    while True:
        os.write(fd, b"on and on")
except OSError as err:
    print(err.strerror, flush=True)
os.kill(os.getpid(), signal.SIGUSR1)
"""


@requires("seccomp")
def test_a_program_that_would_end_at_its_file_limit_runs_on(tmp_path: Path) -> None:
    """Firecracker does, unless its handler of SIGXFSZ is not set: a guest that fills its console's log would end its VMM."""

    def run() -> str:
        argv = [sys.executable, "-c", ENDS_AT_FILE_LIMIT, str(tmp_path / "log")]
        done = subprocess.run(argv, capture_output=True, text=True, restore_signals=False, check=False)
        return done.stdout if done.returncode == 0 else str(done.returncode)

    assert filtered(run) == "File too large\nothers are handled\n"
    assert run() == str(-signal.SIGXFSZ)


def test_another_machine_and_a_kernel_without_it_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp, "ACTIONS", tmp_path / "missing")
    assert "no seccomp filters" in str(seccomp.why_not())
    (tmp_path / "old").write_text("kill trap allow\n")
    monkeypatch.setattr(seccomp, "ACTIONS", tmp_path / "old")
    assert "cannot answer with an errno" in str(seccomp.why_not())
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert "riscv64" in str(seccomp.why_not())
