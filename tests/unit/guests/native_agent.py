"""The agent on this host, without a VM: its own C, with sanitizers, and the calls that would change the host replaced.

``native/harness.c`` is its main program and ``native/fakes.c`` the replacements: what they were asked to do is in ``calls()``,
and ``fake()`` lets one fail or hang.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from ramet.guests import agent_build
from ramet.guests.client import AgentClient
from ramet.linux.unixsock import connect_in
from ramet.process import wait_until

NATIVE_DIR = Path(__file__).parent / "native"
WRAPPED = ("sync", "sethostname", "clock_settime", "kill", "statx", "ioctl", "openat")
WARNINGS = ("-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Wmissing-prototypes", "-Werror")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
SOCKET = "agent.sock"
LINGER_MS = 400
"""How long what outlives a command is listened to, here; so that tests need not wait for the 2 s of a guest."""
DEADLINE_S = 10.0
DIRECTORIES = ("data", "etc/ramet/resume.d", "run/ramet", "sys/fs/cgroup/workload")
CGROUP = "sys/fs/cgroup/workload"


def build_harness(out: Path) -> Path:
    """Compile the agent with AddressSanitizer and UndefinedBehaviorSanitizer, every warning an error."""
    wrap = ",".join(("-Wl", *(f"--wrap={name}" for name in WRAPPED)))
    flags = [*SANITIZERS, "-O1", f"-DLINGER_MS={LINGER_MS}", wrap]
    return compile_c(out, ["harness.c", "fakes.c"], flags, without=("main.c",))


def build_parser_library(out: Path) -> Path:
    """Compile the parser for ctypes; undefined behaviour traps."""
    trap = ("-fsanitize=undefined", "-fsanitize-undefined-trap-on-error")
    return compile_c(out, ["shim.c"], [*trap, "-O2", "-fPIC", "-shared"], only=("proto.c", "bytes.c"))


def compile_c(
    out: Path, own: Sequence[str], flags: Sequence[str], *, only: Sequence[str] = (), without: Sequence[str] = ()
) -> Path:
    """Compile files of ``native/`` together with the agent's."""
    agent = [path for path in agent_build.sources() if path.name != agent_build.FILLER and path.name not in without]
    chosen = [path for path in agent if not only or path.name in only]
    include = [f"-I{agent[0].parent}", f"-I{NATIVE_DIR}"]
    files = [*(str(NATIVE_DIR / name) for name in own), *map(str, chosen)]
    argv = ["gcc", "-std=gnu11", "-g", "-pthread", *WARNINGS, *flags, *include, "-o", str(out), *files]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return out


class NativeAgent:
    """One running agent, with its files under ``root``."""

    def __init__(self, program: Path, root: Path, mode: Sequence[str], pass_fds: Sequence[int] = ()) -> None:
        self.root = root
        for name in DIRECTORIES:
            (root / name).mkdir(parents=True, exist_ok=True)
        for name, text in (("cgroup.procs", ""), ("cgroup.freeze", "0"), ("cgroup.events", "populated 1\nfrozen 1\n")):
            (root / CGROUP / name).write_text(text)
        self._words = root / "stderr"
        with self._words.open("wb") as words:
            self.process = subprocess.Popen(
                [str(program), str(root), *mode],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=words,
                cwd=root,
                pass_fds=tuple(pass_fds),
            )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n", self._words.read_text()

    def stop(self) -> None:
        """End it and fail if it had leaked memory, or if a sanitizer had found anything."""
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(timeout=DEADLINE_S)
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        words = self._words.read_text()
        assert status == 0, words
        assert words == ""

    def connect(self) -> socket.socket:
        """A bare connection."""
        return connect_in(self.root, SOCKET)

    def client(self, *, deadline_s: float = DEADLINE_S) -> AgentClient:
        """A session of its own; a context manager."""
        return AgentClient.over(self.connect(), deadline_s=deadline_s)

    def calls(self) -> list[str]:
        """What the agent would have done to its guest, in order."""
        path = self.root / "calls"
        return path.read_text().splitlines() if path.exists() else []

    @contextmanager
    def fake(self, name: str, answer: int | str) -> Iterator[None]:
        """Let a call fail with an errno, or ``hang``, for the block."""
        path = self.root / f"fake-{name}"
        path.with_suffix(".new").write_text(str(answer))
        path.with_suffix(".new").rename(path)
        try:
            yield
        finally:
            path.unlink()

    @contextmanager
    def mounted_data(self) -> Iterator[None]:
        """Let /data be a file system of its own for the block."""
        marker = self.root / "data-is-mounted"
        marker.touch()
        try:
            yield
        finally:
            marker.unlink()

    @contextmanager
    def frozen_workload(self) -> Iterator[None]:
        """Stop children where a frozen cgroup stops them, when they join it: opening a fifo that nobody reads blocks."""
        procs = self.root / CGROUP / "cgroup.procs"
        procs.unlink()
        os.mkfifo(procs)
        try:
            yield
        finally:
            fd = os.open(procs, os.O_RDONLY | os.O_NONBLOCK)
            procs.with_suffix(".new").touch()
            procs.with_suffix(".new").rename(procs)
            wait_until(lambda: _has_no_writer(fd), DEADLINE_S, what="the children that were stopped")
            os.close(fd)

    def children(self) -> set[int]:
        """Its child processes, zombies included."""
        found = set()
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            with suppress(FileNotFoundError):  # a thread that has just ended
                found |= {int(pid) for pid in (task / "children").read_text().split()}
        return found

    def relatives(self) -> set[int]:
        """Processes that it forked and that have not become another program yet, whoever their parent is now."""
        found = set()
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(FileNotFoundError, ProcessLookupError):
                if os.fsencode(self.root) in (path / "cmdline").read_bytes().split(b"\0"):
                    found.add(int(path.name))
        return found - {self.process.pid}

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def settle(self) -> int:
        """Wait until no session is open; returns how many descriptors are."""

        def quiet() -> int | None:
            try:
                names = [str(path.readlink()) for path in Path(f"/proc/{self.process.pid}/fd").iterdir()]
            except FileNotFoundError:  # one that was just closed
                return None
            sockets = sum("socket:" in name for name in names)  # one is listened on; a session's is closed last
            is_open = sockets > 1 or any("eventpoll" in name or "pidfd" in name for name in names)
            return None if is_open else len(names)

        return wait_until(quiet, DEADLINE_S, what="the end of all sessions")


@contextmanager
def running_agent(program: Path, root: Path) -> Iterator[NativeAgent]:
    """An agent that accepts connections, as over vsock."""
    agent = NativeAgent(program, root, ("unix", SOCKET))
    try:
        yield agent
    except BaseException:
        agent.process.kill()
        raise
    finally:
        if agent.process.poll() is None:
            agent.stop()


@contextmanager
def port_agent(program: Path, root: Path) -> Iterator[tuple[NativeAgent, socket.socket]]:
    """An agent on one stream that outlives its clients, as a virtio port does: closing a ``dup()`` of it tells it nothing."""
    ours, theirs = socket.socketpair()
    with closing(ours):
        with closing(theirs):
            agent = NativeAgent(program, root, ("stream", str(theirs.fileno())), (theirs.fileno(),))
        try:
            yield agent, ours
        finally:
            if agent.process.poll() is None:
                agent.stop()


def _has_no_writer(fifo_fd: int) -> bool:
    try:
        return os.read(fifo_fd, 4096) == b""
    except BlockingIOError:
        return False
