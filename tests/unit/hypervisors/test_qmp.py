"""QMP, from a server that the test plays: a signal at any moment of it raises, once, and is told to nobody else."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ramet.errors import VmmDiedError
from ramet.hypervisors.qemu.qmp import QmpMonitor
from ramet.linux.unixsock import listen_in
from ramet.paths import QMP_SOCKET

GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []}}
TIMEOUT_S = 60.0
ROUNDS = 120
ASKING = """
import os, signal, sys, threading, time
from pathlib import Path
from ramet.hypervisors.qemu.qmp import QmpMonitor
run_dir, rounds = Path(sys.argv[1]), int(sys.argv[2])

def ask(after_s):
    "Connect, ask and leave, again and again, until the signal raises."
    end = time.monotonic() + 5
    kill = threading.Timer(after_s, os.kill, (os.getpid(), signal.SIGINT))
    try:
        kill.start()  # the signal may come before it returns
        while time.monotonic() < end:
            with QmpMonitor(run_dir, deadline_s=5) as monitor:
                monitor.vcpus_running()
    except KeyboardInterrupt:
        return "raised"
    finally:
        kill.join()
    return "lost"

with QmpMonitor(run_dir, deadline_s=5) as monitor:
    monitor.vcpus_running()  # making a decoder is where msgspec loses a signal (ramet.cli.signals)
print(*[ask(0.01 + number * 0.00013) for number in range(rounds)])
"""


def serve(sock: socket.socket) -> None:
    """Answer one connection as QEMU does."""

    def say(message: object) -> None:
        sock.sendall(json.dumps(message).encode() + b"\n")

    say(GREETING)
    asked = b""
    while more := sock.recv(65536):
        asked += more
        with suppress(json.JSONDecodeError):  # a client ends no line
            request = json.loads(asked)
            asked = b""
            status = {"running": True, "status": "running", "singlestep": False}
            numbered = {"id": request["id"]} if "id" in request else {}  # the negotiation has none
            say({"return": status if request["execute"] == "query-status" else {}, **numbered})


@contextmanager
def qemu(run_dir: Path) -> Iterator[None]:
    """Listen until the block ends."""
    with listen_in(run_dir, QMP_SOCKET) as server:

        def take_all() -> None:
            with suppress(OSError):  # it is shut down at the end
                while True:
                    sock, _ = server.accept()
                    with sock, suppress(ConnectionError):
                        serve(sock)

        thread = threading.Thread(target=take_all)
        thread.start()
        try:
            yield
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(20)


def test_what_is_asked_is_answered(tmp_path: Path) -> None:
    with qemu(tmp_path), QmpMonitor(tmp_path, deadline_s=5) as monitor:
        assert monitor.vcpus_running()


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(VmmDiedError, match="Could not reach QEMU"):
        QmpMonitor(tmp_path, deadline_s=5)


def test_a_signal_at_any_moment_is_neither_lost_nor_taken_for_something_else(tmp_path: Path) -> None:
    """asyncio and qemu.qmp must not see it: their tasks would take it for the end of their connection."""
    with qemu(tmp_path):
        argv = [sys.executable, "-c", ASKING, str(tmp_path), str(ROUNDS)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["raised"] * ROUNDS


def test_a_signal_does_not_wait_for_a_vmm_that_is_silent(tmp_path: Path) -> None:
    with listen_in(tmp_path, QMP_SOCKET):
        kill = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))

        def connect() -> None:
            kill.start()  # the signal may come before it returns
            QmpMonitor(tmp_path, deadline_s=60)

        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            connect()
        assert time.monotonic() - began < 30
        kill.join()


def test_a_handler_that_does_not_raise_ends_no_request(tmp_path: Path) -> None:
    came = []
    old = signal.signal(signal.SIGTERM, lambda number, _frame: came.append(number))
    try:
        with qemu(tmp_path), QmpMonitor(tmp_path, deadline_s=5) as monitor:
            for round_number in range(50):
                kill = threading.Timer(round_number * 0.00005, os.kill, (os.getpid(), signal.SIGTERM))
                kill.start()
                assert monitor.vcpus_running()
                kill.join()
    finally:
        signal.signal(signal.SIGTERM, old)
    assert len(came) == 50
