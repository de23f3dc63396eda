"""A program that tries every way out: started as a VMM is, it prints what came of each act, as JSON."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PTRACE_SEIZE = 0x4206
SYS_PROCESS_VM_WRITEV, SYS_CLONE = 311, 56
CLONE_NEWUSER, IPC_PRIVATE = 0x10000000, 0
GO = "work/go"
"""The file that says that it was started as a VMM is, and that nothing more is to come."""
DESCRIPTORS, PROCESSES, LOCKED_BYTES = 3000, 60, 4096
Act = tuple[str, Callable[[], object]]


class IoVec(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def raised(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def acts(
    own: Path, image: Path, mine: Path, victim: Path, pid: int, address: int, abstract: str, largest: int
) -> Iterator[Act]:
    """Each act, and what is done for it. ``victim`` is another instance's directory, with files 0 to 14, ``pid`` its VMM, which
    has memory at ``address``. No file that a VMM writes needs to be larger than ``largest`` bytes.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    yield "own: make", lambda: (own / "work/new").write_bytes(b"new")
    yield "own: write", lambda: (own / "work/disk.raw").open("r+b").write(b"mine")
    yield "own: truncate", lambda: (own / "work/new").open("r+b").truncate(1)
    yield "own: rename", lambda: (own / "work/new").rename(own / "work/newer")
    yield "own: remove", lambda: (own / "work/newer").unlink()
    yield "own: log", lambda: (own / "logs/console.log").open("ab").write(b"said")
    yield "own: listen", lambda: socket.socket(socket.AF_UNIX).bind(str(own / "run/own.sock"))
    yield "own: have it interpreted", lambda: interpret(own / "work/script")
    yield "own: read the image", image.read_bytes
    yield "own: read the snapshot", mine.read_bytes
    yield "own snapshot: execute", lambda: execute(mine)
    yield "own snapshot: write", lambda: mine.open("r+b")
    yield "own snapshot: truncate", lambda: os.truncate(mine, 0)
    yield "own record: write", lambda: (own / "instance.json").write_bytes(b"{}")
    yield "own record: replace", lambda: (own / "work/spare").rename(own / "instance.json")
    yield "image: write", lambda: image.open("r+b")
    yield "execute what was written", lambda: execute(own / "work/program")
    yield "execute what was made executable", lambda: make_and_execute(own / "work/born")
    yield "execute from memory", execute_from_memory
    yield "victim: read", (victim / "0").read_bytes
    yield "victim: list", lambda: list(victim.iterdir())
    yield "victim: write", lambda: (victim / "1").open("r+b")
    yield "victim: append", lambda: (victim / "2").open("ab")
    yield "victim: truncate", lambda: os.truncate(victim / "3", 0)
    yield "victim: open and truncate", lambda: (victim / "4").open("wb")
    yield "victim: remove", (victim / "5").unlink
    yield "victim: rename", lambda: (victim / "6").rename(victim / "moved")
    yield "victim: take", lambda: (victim / "7").rename(own / "work/taken")
    yield "victim: replace", lambda: (own / "work/other").replace(victim / "8")
    yield "victim: link", lambda: os.link(victim / "9", own / "work/linked")
    yield "victim: symlink", lambda: (own / "work/pointer").symlink_to(victim / "10")
    yield "victim: make", lambda: (victim / "planted").write_bytes(b"x")
    yield "victim: make a directory", lambda: (victim / "directory").mkdir()
    yield "make a device", lambda: os.mknod(own / "work/disk", 0o060600, os.makedev(8, 0))
    yield "process: signal", lambda: os.kill(pid, 0)
    yield "process: trace", lambda: raised(libc.ptrace(PTRACE_SEIZE, pid, 0, 0))
    yield "process: read its memory", lambda: Path(f"/proc/{pid}/mem").open("rb").close()
    yield "process: write its memory", lambda: write_into(libc, pid, address)
    yield "process: its files", lambda: os.open(f"/proc/{pid}/root{victim / '11'}", os.O_RDWR)
    yield "process: abstract socket", lambda: socket.socket(socket.AF_UNIX).connect(f"\0{abstract}")
    yield "process: its socket", lambda: socket.socket(socket.AF_UNIX).connect(str(victim / "qmp.sock"))
    yield "process: limits", lambda: resource.prlimit(pid, resource.RLIMIT_NOFILE, (64, 64))
    yield "process: datagram", lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"x", f"\0{abstract}d")
    yield "process: scheduling", lambda: os.sched_setaffinity(pid, os.sched_getaffinity(0))
    yield "new namespace", lambda: raised(clone_into_new_namespace(libc))
    yield "shared memory", lambda: raised(libc.shmget(IPC_PRIVATE, 4096, 0o600))
    yield "network: listen", lambda: listen_on_tcp()
    yield "victim: mode", lambda: (victim / "12").chmod(0o666)
    yield "victim: times", lambda: os.utime(victim / "13", (1, 1))
    yield "victim: attributes", lambda: os.setxattr(victim / "14", "user.ramet", b"x")
    yield "host: many descriptors", open_many
    yield "host: a large file", lambda: grow(own / "work/large", largest + 1)
    yield "host: locked memory", lambda: raised(lock_memory(libc))
    yield "host: real-time priority", take_the_processor
    yield "host: many processes", fork_many


def execute(path: Path) -> None:
    if not path.exists():
        path.write_bytes(b"#!/bin/sh\n")
    path.chmod(0o700)
    subprocess.run([str(path)], check=True)


def interpret(path: Path) -> None:
    path.write_bytes(b"exit 0\n")
    subprocess.run(["/bin/sh", str(path)], check=True)


def make_and_execute(path: Path) -> None:
    """No change of mode is needed."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o700)
    os.write(fd, b"#!/bin/sh\n")
    os.close(fd)
    try:
        subprocess.run([str(path)], check=True)
    finally:
        path.unlink()


def execute_from_memory() -> None:
    fd = os.memfd_create("program")
    os.write(fd, Path("/bin/true").read_bytes())
    subprocess.run([f"/proc/self/fd/{fd}"], check=True, pass_fds=(fd,))


def open_many() -> None:
    opened: list[int] = []
    try:
        while len(opened) < DESCRIPTORS:
            opened.append(os.open("/dev/null", os.O_RDONLY))
    finally:
        for fd in opened:
            os.close(fd)


def grow(path: Path, size_bytes: int) -> None:
    with path.open("wb") as stream:
        stream.truncate(size_bytes)
    path.unlink()


def lock_memory(libc: ctypes.CDLL) -> int:
    page = ctypes.create_string_buffer(LOCKED_BYTES)
    return int(libc.mlock(ctypes.byref(page), LOCKED_BYTES))


def take_the_processor() -> None:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def fork_many() -> None:
    children: list[int] = []
    try:
        while len(children) < PROCESSES:
            child = os.fork()
            if child == 0:
                signal.alarm(60)
                signal.pause()
            children.append(child)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def clone_into_new_namespace(libc: ctypes.CDLL) -> int:
    """A child that ends at once."""
    libc.syscall.restype = ctypes.c_long
    pid = int(libc.syscall(SYS_CLONE, *map(ctypes.c_ulong, (CLONE_NEWUSER | signal.SIGCHLD, 0, 0, 0, 0))))
    if pid == 0:
        os._exit(0)
    if pid > 0:
        os.waitpid(pid, 0)
    return pid


def listen_on_tcp() -> None:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()


def write_into(libc: ctypes.CDLL, pid: int, address: int) -> None:
    local = ctypes.create_string_buffer(8)
    here, there = IoVec(ctypes.addressof(local), 8), IoVec(address, 8)
    libc.syscall.restype = ctypes.c_long
    one, none = ctypes.c_ulong(1), ctypes.c_ulong(0)
    raised(libc.syscall(SYS_PROCESS_VM_WRITEV, pid, ctypes.byref(here), one, ctypes.byref(there), one, none))


def main(own: str, image: str, mine: str, victim: str, pid: str, address: str, abstract: str, largest: str) -> None:
    found: dict[str, str] = {}
    places = (Path(own), Path(image), Path(mine), Path(victim))
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    while not (places[0] / GO).exists():  # a VMM has no guest either before it is limited
        time.sleep(0.001)
    for name, act in acts(*places, int(pid), int(address), abstract, int(largest)):
        try:
            act()
        except OSError as err:
            found[name] = errno.errorcode[err.errno or 0]
        else:
            found[name] = "done"
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
