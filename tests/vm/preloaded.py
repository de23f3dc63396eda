"""Processes that begin with everything imported: what such a command costs is its own work, and not the start of a Python.

    preloaded.run("ramet", ["ls"], env={…})           ``ramet ls``, as a process of its own
    preloaded.run("killing", ["--at", "17", …])       ``python -m tests.vm.killing --at 17 …``

One server per process that asks (``python -m tests.vm.preloaded``) has imported every module, has no threads and does nothing
else; it forks for each command, which has its own standard streams and environment, and ends as a Python does. The server ends
when its socket is closed.
"""

from __future__ import annotations

import functools
import gc
import importlib
import io
import json
import os
import pkgutil
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parents[2]
REQUEST_MAX_BYTES = 1 << 17
OUTSIDE = ("rich.console", "rich.table", "rich.text", "rich.progress", "rich.live", "click.shell_completion")
"""What ``ramet`` imports only when a command needs it."""


def run(
    program: str, argv: Sequence[str], *, env: Mapping[str, str], stdin: bytes = b"", timeout_s: float
) -> subprocess.CompletedProcess[bytes]:
    """A command from its start to its end, and to the end of whatever else holds its stdout or its stderr.

    Raises:
        subprocess.TimeoutExpired: if it takes longer; it was killed.
    """
    request = json.dumps({"program": program, "argv": list(argv), "env": dict(env)}).encode()
    assert len(request) <= REQUEST_MAX_BYTES
    with ExitStack() as stack:
        own, theirs = zip(*(_pipe(number) for number in range(3)), strict=True)
        ours = [stack.enter_context(io.FileIO(fd, mode)) for fd, mode in zip(own, ("w", "r", "r"), strict=True)]
        asker, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with asker:
            with end:
                socket.send_fds(_server(), [request], [*theirs, end.fileno()])
            for fd in theirs:
                os.close(fd)
            pid = int(asker.recv(64))
            out, err = _communicate(pid, ours, stdin, [program, *argv], timeout_s)
            status = int(asker.recv(64))
    return subprocess.CompletedProcess([program, *argv], status, out, err)


def _pipe(number: int) -> tuple[int, int]:
    """Our end, and the command's descriptor ``number``."""
    reader, writer = os.pipe()
    return (writer, reader) if number == 0 else (reader, writer)


def _communicate(
    pid: int, ours: Sequence[io.FileIO], stdin: bytes, argv: list[str], timeout_s: float
) -> tuple[bytes, bytes]:
    """Give it ``stdin``, and read its stdout and stderr to their ends."""
    deadline = time.monotonic() + timeout_s
    to, out, err = ours
    found = {out: bytearray(), err: bytearray()}
    with selectors.DefaultSelector() as selector:
        selector.register(to, selectors.EVENT_WRITE)
        for one in found:
            selector.register(one, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(deadline - time.monotonic(), 0))
            if not ready:
                os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(argv, timeout_s, bytes(found[out]), bytes(found[err]))
            for key, _ in ready:
                stream = key.fileobj
                if stream is to:
                    with suppress(BrokenPipeError):
                        stdin = stdin[os.write(to.fileno(), stdin[: select.PIPE_BUF]) :] if stdin else b""
                        if stdin:
                            continue
                    selector.unregister(to)
                    to.close()
                    continue
                assert isinstance(stream, io.FileIO)
                data = stream.read(1 << 16)
                if data:
                    found[stream] += data
                else:
                    selector.unregister(stream)
    return bytes(found[out]), bytes(found[err])


_lock = threading.Lock()


def _server() -> socket.socket:
    with _lock:
        return _started()


@functools.cache
def _started() -> socket.socket:
    """The socket of this process's server; that it is closed with us ends the server."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
    return ours


# -- the server ---------------------------------------------------------------------------------------------------


def import_everything() -> dict[str, Callable[[], object]]:
    """The programs there are, and every module that they may want."""
    import ramet

    for found in pkgutil.walk_packages(ramet.__path__, "ramet."):
        if not found.name.endswith(("__main__", ".testing")):
            importlib.import_module(found.name)
    for name in OUTSIDE:
        importlib.import_module(name)
    from ramet.cli.main import main
    from tests.vm import killing

    return {"ramet": main, "killing": killing.main}


def serve(sock: socket.socket, programs: Mapping[str, Callable[[], object]]) -> Callable[[], object] | None:
    """Fork for each request. Returns in each child, what it is to run; and when the socket is closed, None."""
    running: dict[int, tuple[int, socket.socket]] = {}  # by pidfd
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd in running:
                    selector.unregister(key.fd)
                    pid, asker = running.pop(key.fd)
                    os.close(key.fd)
                    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    with asker, suppress(BrokenPipeError):  # it has had enough
                        asker.send(str(status).encode())
                    continue
                request, fds, _, _ = socket.recv_fds(sock, REQUEST_MAX_BYTES, 4)
                if not request:
                    return None
                asker = socket.socket(fileno=fds.pop())
                pid = os.fork()
                if pid == 0:
                    for other in (sock, asker, *(one for _, one in running.values())):
                        other.close()
                    for pidfd in running:
                        os.close(pidfd)
                    return _child(json.loads(request), fds, programs)
                for fd in fds:
                    os.close(fd)
                asker.send(str(pid).encode())
                pidfd = os.pidfd_open(pid)
                running[pidfd] = pid, asker
                selector.register(pidfd, selectors.EVENT_READ)


def _child(
    request: dict[str, object], fds: Sequence[int], programs: Mapping[str, Callable[[], object]]
) -> Callable[[], object]:
    """Become what was asked for."""
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    env, argv = request["env"], request["argv"]
    assert isinstance(env, dict)
    assert isinstance(argv, list)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["ramet", *argv]
    return programs[str(request["program"])]


def main() -> NoReturn:
    sock = socket.socket(fileno=int(sys.argv[1]))
    programs = import_everything()
    gc.freeze()  # a child that collects would copy every page
    program = serve(sock, programs)
    if program is not None:
        program()
    sys.exit(0)


if __name__ == "__main__":
    main()
