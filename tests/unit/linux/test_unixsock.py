"""Unix sockets in directories that are far too long for sun_path."""

from __future__ import annotations

import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from ramet.linux.unixsock import connect_in, listen_in
from tests.unit.children import own_descriptors


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """A directory whose path has more than 200 characters."""
    directory = tmp_path / ("d" * 100) / ("e" * 100)
    directory.mkdir(parents=True)
    assert len(str(directory)) > 200
    return directory


def test_the_kernel_would_refuse_the_whole_path(deep: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock, pytest.raises(OSError, match="too long"):
        sock.bind(str(deep / "vmm.sock"))


def test_bytes_pass_both_ways(deep: Path) -> None:
    with listen_in(deep, "vmm.sock") as listener, connect_in(deep, "vmm.sock") as client:
        server, _ = listener.accept()
        with server:
            client.sendall(b"ask")
            assert server.recv(16) == b"ask"
            server.sendall(b"answer")
            assert client.recv(16) == b"answer"
    assert (deep / "vmm.sock").is_socket()


def test_a_stale_socket_is_replaced(deep: Path) -> None:
    """H45: what a VMM that was killed has left."""
    listen_in(deep, "vmm.sock").close()
    with pytest.raises(ConnectionRefusedError):
        connect_in(deep, "vmm.sock")
    with listen_in(deep, "vmm.sock") as listener, connect_in(deep, "vmm.sock"):
        listener.accept()[0].close()


def test_no_listener_no_socket_no_directory_are_os_errors_and_leak_nothing(deep: Path) -> None:
    before = own_descriptors()
    with pytest.raises(FileNotFoundError):
        connect_in(deep, "vmm.sock")
    with pytest.raises(FileNotFoundError):
        connect_in(deep / "nowhere", "vmm.sock")
    with pytest.raises(FileNotFoundError):
        listen_in(deep / "nowhere", "vmm.sock")
    (deep / "directory").mkdir()
    with pytest.raises((IsADirectoryError, PermissionError)):
        listen_in(deep, "directory")
    (deep / "file").write_text("not a socket")
    with pytest.raises(ConnectionRefusedError):
        connect_in(deep, "file")
    assert own_descriptors() == before


def test_a_listener_that_accepts_nothing_is_not_waited_for_for_ever(deep: Path) -> None:
    """Clients that were killed fill the backlog of a VMM that hangs."""
    before = own_descriptors()
    with ExitStack() as stack:
        stack.enter_context(listen_in(deep, "vmm.sock"))
        for _ in range(2):
            stack.enter_context(connect_in(deep, "vmm.sock"))
        began = time.monotonic()
        with pytest.raises(TimeoutError, match="has accepted no connection"):
            connect_in(deep, "vmm.sock", deadline_s=0.1)
        assert 0.05 < time.monotonic() - began < 5
    assert own_descriptors() == before


def test_a_signal_while_it_waits_does_not_make_it_a_connection(deep: Path) -> None:
    """One whose handler raises nothing, as a held one's does."""
    old = signal.signal(signal.SIGALRM, lambda *_: None)
    try:
        with ExitStack() as stack:
            stack.enter_context(listen_in(deep, "vmm.sock"))
            for _ in range(2):
                stack.enter_context(connect_in(deep, "vmm.sock"))
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(TimeoutError):
                connect_in(deep, "vmm.sock", deadline_s=0.2)
    finally:
        signal.signal(signal.SIGALRM, old)


def test_a_connection_has_no_time_limit_for_sending(deep: Path) -> None:
    with listen_in(deep, "vmm.sock"), connect_in(deep, "vmm.sock", deadline_s=0.1) as client:
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, 16) == bytes(16)


def test_sockets_are_not_inherited_unless_told(deep: Path) -> None:
    with listen_in(deep, "vmm.sock") as listener, connect_in(deep, "vmm.sock") as client:
        assert not listener.get_inheritable()
        assert not client.get_inheritable()
