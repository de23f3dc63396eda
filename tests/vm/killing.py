"""``python -m tests.vm.killing --at 17 -- standby web``: a ``ramet`` command that is killed or interrupted, or whose VMMs are
killed, before a step; or whose step fails, as on a disk that is full or broken.

A step is whatever changes something outside the process, in the order in which it happens: a file that is opened for writing,
renamed, linked, deleted, written or made durable, a program that is started, a signal, a connection, a message. They are found
by Python's audit events and by wrapping the calls that raise none, so a new step of a verb is one here by itself. The pieces of a
copy or of a message are one step, and so is the deletion of all sockets.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import os
import re
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from ramet import process
from ramet.cli.main import main as ramet
from ramet.guests import kernel
from ramet.model import VmmProcess
from ramet.store import atomic

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
NAMES = (
    (re.compile(r"^proc/self/fd/\d+/"), ""),
    (re.compile(r"[0-9a-f]{32}|[0-9a-f]{12}"), "ID"),
    (re.compile(r"^images/\.(build|trash)-[\w-]+"), r"images/(\1)"),
    (re.compile(r"\.([\w.-]+)\.[\w-]{8}$"), r"(\1)"),  # a temporary file
    (re.compile(r"run/(agent\d|qmp|console|vsock|api)\.(sock|pid)$"), "run/*"),
    (re.compile(r"agent\d"), "agent"),
)
"""What differs from run to run, and what it is called instead."""
BY_PATH = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.chmod", "os.truncate"}
STARTS = {"subprocess.Popen", "os.posix_spawn"}
END_WITHIN_S = 30.0
FICLONE = 0x40049409
FS_IOC_SHUTDOWN = 0x8004587D
"""_IOR('X', 125, __u32), <linux/fs.h>; XFS_IOC_GOINGDOWN has the same number."""
NO_LOG_FLUSH = struct.pack("=I", 2)
WRITING = (
    "open",
    "rename",
    "link",
    "mkdir",
    "fsync",
    "fdatasync",
    "write",
    "copy",
    "clone",
    "ftruncate",
    "fchmod",
    "chmod",
)
"""The steps that a full or broken disk makes fail; it does not keep anything from being deleted."""


class Steps:
    """Counts them, and strikes before one."""

    def __init__(
        self, home: Path, *, at: int | None, strike: Callable[[], None], counts: Callable[[str], bool]
    ) -> None:
        self.names: list[str] = []
        self._counts = counts
        self._home = str(home)
        self._at = at
        self._strike = strike
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._is_inside = False

    def step(self, name: str) -> None:
        """One is about to be made."""
        with self._lock:
            if self._is_inside or os.getpid() != self._pid or not self._counts(name):
                return
            if name in self.names[-1:] and is_a_piece(name):
                return
            self.names.append(name)
            if len(self.names) - 1 == self._at:
                self._is_inside = True
                try:
                    self._strike()
                finally:
                    self._is_inside = False

    def audited(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook (sys.addaudithook)."""
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & WRITES and self._is_in_store(path):
                self.step(f"open {self.called(path)}")
        elif event in BY_PATH and (self._is_in_store(arguments[0]) or self._is_in_a_tree(event, arguments)):
            target = f" -> {self.called(arguments[1])}" if event in ("os.rename", "os.link") else ""
            self.step(f"{event.removeprefix('os.')} {self.called(arguments[0])}{target}")
        elif event in STARTS:
            self.step(f"start {Path(os.fsdecode(arguments[0])).name}")
        elif event == "socket.connect" and isinstance(arguments[1], str | bytes):
            self.step(f"connect {self.called(arguments[1])}")
        elif event == "fcntl.ioctl" and arguments[1] == FICLONE:
            self.step("clone")

    def wrap(self) -> None:
        """Count the calls that raise no audit event."""

        def counted(owner: Any, name: str, label: Callable[..., str]) -> None:
            real = getattr(owner, name)

            def call(*arguments: Any, **options: Any) -> Any:
                self.step(label(*arguments))
                return real(*arguments, **options)

            setattr(owner, name, call)

        counted(os, "fsync", lambda fd: f"fsync {self.of(fd)}")
        counted(os, "fdatasync", lambda fd: f"fdatasync {self.of(fd)}")
        counted(os, "fchmod", lambda fd, _mode: f"fchmod {self.of(fd)}")
        counted(os, "ftruncate", lambda fd, _size: f"ftruncate {self.of(fd)}")
        for name in ("write", "pwrite", "pwritev", "writev"):
            counted(os, name, lambda fd, *_: f"write {self.of(fd)}")
        for name in ("copy_file_range", "sendfile"):
            counted(os, name, lambda *_: "copy")
        counted(atomic, "rename_noreplace", lambda a, b: f"rename {self.called(a)} -> {self.called(b)}")
        counted(signal, "pidfd_send_signal", lambda _fd, number, *_: f"send {signal.Signals(number).name}")
        for name in ("send", "sendall", "sendmsg"):
            counted(socket.socket, name, lambda sock, *_: f"send to {self.called(peer(sock))}")

    def _is_in_store(self, path: object) -> bool:
        return isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(self._home)

    def _is_in_a_tree(self, event: str, arguments: tuple[Any, ...]) -> bool:
        """Whether something of the store is deleted by its name in an open directory, as shutil.rmtree does."""
        if event not in ("os.remove", "os.rmdir") or arguments[-1] == -1:
            return False
        return self._is_in_store(Path(f"/proc/self/fd/{arguments[-1]}").readlink())

    def of(self, fd: int) -> str:
        """What an open file is called."""
        try:
            return self.called(Path(f"/proc/self/fd/{fd}").readlink())
        except OSError:
            return "?"

    def called(self, path: str | bytes | os.PathLike[str]) -> str:
        """A path without what differs from run to run."""
        name = os.fsdecode(path).removeprefix(self._home).lstrip("/")
        for pattern, instead in NAMES:
            name = pattern.sub(instead, name)
        return name


def is_a_piece(name: str) -> bool:
    """Whether several such steps in a row are one."""
    return name.partition(" ")[0] in ("write", "copy", "send") or name.startswith(
        ("remove agent", "remove instances/ID/run/")
    )


def writing(steps: Sequence[str]) -> list[str]:
    """Those that a disk can make fail, as they are counted where it does: what is one step then may be several of all steps."""
    found: list[str] = []
    for name in filter(is_writing, steps):
        if name not in found[-1:] or not is_a_piece(name):
            found.append(name)
    return found


def is_writing(name: str) -> bool:
    """Whether a step of that name needs the disk to be well."""
    return name.partition(" ")[0] in WRITING


def peer(sock: socket.socket) -> str:
    try:
        return Path(str(sock.getpeername())).name
    except OSError:
        return "nobody"


def cut_power(home: Path) -> None:
    """The store's file system stops with what it has not made durable, and no VMM writes anything any more."""
    found = vmms_of(home)
    fd = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.ioctl(fd, FS_IOC_SHUTDOWN, NO_LOG_FLUSH)
    os.close(fd)
    end(found)


def end_vmms(home: Path) -> None:
    """Kill every VMM of the store, and wait until they have ended: what is seen next is what has become of their instances."""
    end(vmms_of(home))


def vmms_of(home: Path) -> list[VmmProcess]:
    return [vmm for run_dir in (home / "instances").glob("*/run") for vmm in process.find_marked(run_dir)]


def end(found: Sequence[VmmProcess]) -> None:
    for vmm in found:
        with suppress(ProcessLookupError):  # it was about to end by itself
            os.kill(vmm.pid, signal.SIGKILL)  # no step: it would wait for the one that is being struck
    for vmm in found:
        process.wait_gone(vmm, END_WITHIN_S)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.vm.killing")
    parser.add_argument("--at", type=int, help="the number of the step; without it all are made")
    parser.add_argument("--vmms", action="store_true", help="kill the VMMs there, and let the command go on")
    parser.add_argument("--power", action="store_true", help="cut the power there: see cut_power")
    parser.add_argument("--signal", help="do not kill the command there: send it this signal, by its name")
    parser.add_argument("--errno", choices=("ENOSPC", "EIO"), help="count writing steps alone, and let that one fail")
    parser.add_argument("--steps", type=Path, help="write the names of the steps to this file")
    parser.add_argument("--struck", type=Path, help="make this file when the step was reached")
    parser.add_argument(
        "--kernel", type=Path, help="of `image build`: take this one, instead of half a minute's unpacking"
    )
    parser.add_argument("argv", nargs="+")
    options = parser.parse_args()
    home = Path(os.environ["RAMET_HOME"])
    if options.kernel is not None:
        taken = kernel.Kernel(
            version="6", package="taken", tick_hz=250, vmlinux=options.kernel.read_bytes(), modules=()
        )
        kernel.obtain = lambda *_, **__: taken

    def act() -> None:
        if options.struck is not None:
            options.struck.touch()
        if options.power:
            cut_power(home)
        elif options.vmms:
            end_vmms(home)
        if options.vmms:
            return
        if options.errno is None:
            os.kill(os.getpid(), signal.Signals[options.signal or "SIGKILL"])

    def strike() -> None:
        striker.submit(act).result()
        if options.errno is not None:
            number = getattr(errno, options.errno)
            raise OSError(number, os.strerror(number))

    striker = ThreadPoolExecutor(1)
    striker.submit(int).result()  # a thread with all our rights: the one that starts a VMM has given them up
    counts = is_writing if options.errno is not None else lambda _name: True
    steps = Steps(home, at=options.at, strike=strike, counts=counts)
    sys.argv = ["ramet", *options.argv]
    steps.wrap()
    sys.addaudithook(steps.audited)
    try:
        ramet()
    finally:
        made = list(steps.names)
        if options.steps is not None:
            options.steps.write_text("".join(f"{name}\n" for name in made))


if __name__ == "__main__":
    main()
