"""Firecracker's REST interface, from a server that the test plays: refusals, silence, and a connection that breaks."""

from __future__ import annotations

import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ramet.errors import HostError, NoSpaceError, RejectedError, VmmDiedError, VmmError
from ramet.hypervisors.firecracker import api
from ramet.hypervisors.firecracker.api import FirecrackerMonitor
from ramet.linux.unixsock import listen_in
from ramet.paths import API_SOCKET

NO_CONTENT = b"HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n"
Behaviour = Callable[[socket.socket], None]


def answer(status: int, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status} \r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def fault(text: str) -> bytes:
    return answer(400, b'{"fault_message":"' + text.encode() + b'"}')


def take_request(sock: socket.socket) -> bytes:
    """One whole request: its head and its body may come apart."""
    data = b""
    while True:
        head, end, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        if end and len(body) >= (int(length[1]) if length else 0):
            return data
        more = sock.recv(65536)
        if not more:
            raise ConnectionResetError
        data += more


def answering(*answers: bytes) -> Behaviour:
    def behave(sock: socket.socket) -> None:
        for one in answers:
            take_request(sock)
            sock.sendall(one)
        while sock.recv(65536):
            pass

    return behave


@contextmanager
def monitor(run_dir: Path, *behaviours: Behaviour, deadline_s: float = 5.0) -> Iterator[FirecrackerMonitor]:
    """A connected monitor; the server takes one connection for each behaviour, and then listens no more."""
    with listen_in(run_dir, API_SOCKET) as server:

        def serve() -> None:
            for behave in behaviours:
                sock, _ = server.accept()
                with sock, suppress(OSError):
                    sock.settimeout(10)
                    behave(sock)
            server.close()

        thread = threading.Thread(target=serve)
        thread.start()
        with FirecrackerMonitor(run_dir, deadline_s=deadline_s) as made:
            yield made
        thread.join(20)
        assert not thread.is_alive()


def test_what_is_asked_is_what_is_sent(tmp_path: Path) -> None:
    seen = []

    def behave(sock: socket.socket) -> None:
        for reply in (NO_CONTENT, answer(200, b'{"id":"x","state":"Paused","vmm_version":"1.12.1"}'), NO_CONTENT):
            seen.append(take_request(sock))
            sock.sendall(reply)

    with monitor(tmp_path, behave) as made:
        made.stop_vcpus()
        assert not made.vcpus_running()
        made.create_snapshot(vmstate="work/vmstate", memory="work/memory.next", diff=True)
    assert seen[0].startswith(b"PATCH /vm ")
    assert seen[0].endswith(b'{"state":"Paused"}')
    assert seen[1].startswith(b"GET / ")
    assert seen[2].startswith(b"PUT /snapshot/create ")
    assert b'"snapshot_type":"Diff"' in seen[2]
    assert b'"mem_file_path":"work/memory.next"' in seen[2]


@pytest.mark.parametrize("text", ["The microVM cannot be paused", "No such file or directory (os error 2)"])
def test_a_refusal_carries_what_firecracker_said(tmp_path: Path, text: str) -> None:
    with monitor(tmp_path, answering(fault(text), NO_CONTENT)) as made:
        with pytest.raises(RejectedError) as caught:
            made.create_snapshot(vmstate="s", memory="m", diff=False)
        assert caught.value.reply == text
        made.stop_vcpus()


def test_a_refusal_that_is_no_json_is_shown_as_it_is(tmp_path: Path) -> None:
    with (
        monitor(tmp_path, answering(answer(500, b"\xffoops"))) as made,
        pytest.raises(RejectedError) as caught,
    ):
        made.stop_vcpus()
    assert "oops" in caught.value.reply


@pytest.mark.parametrize(("number", "kind"), [(28, NoSpaceError), (122, NoSpaceError), (30, HostError), (5, HostError)])
def test_an_error_of_the_host_is_told_as_one(tmp_path: Path, number: int, kind: type[HostError]) -> None:
    """H12."""
    text = f"Cannot dump memory: Guest memory error: something (os error {number})"
    with monitor(tmp_path, answering(fault(text))) as made, pytest.raises(kind, match="let Firecracker write m"):
        made.create_snapshot(vmstate="s", memory="m", diff=True)


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 20", b"no HTTP at all\r\n\r\n"])
def test_a_connection_that_breaks_is_a_death(tmp_path: Path, sent: bytes) -> None:
    def behave(sock: socket.socket) -> None:
        take_request(sock)
        sock.sendall(sent)

    with monitor(tmp_path, behave) as made:
        with pytest.raises(VmmDiedError):
            made.stop_vcpus()
        with pytest.raises(VmmDiedError):
            made.stop_vcpus()


def test_silence_has_an_end_and_what_comes_next_has_a_connection_of_its_own(tmp_path: Path) -> None:
    with monitor(tmp_path, answering(), answering(NO_CONTENT), deadline_s=0.2) as made:
        with pytest.raises(VmmError, match=r"within 0.2 s"):
            made.stop_vcpus()
        made.resume_vcpus()


def test_an_answer_that_comes_byte_by_byte_has_an_end(tmp_path: Path) -> None:
    """A time-out for each byte is none for all."""

    def behave(sock: socket.socket) -> None:
        take_request(sock)
        sock.sendall(b"HTTP/1.1 200 \r\nContent-Length: 1000\r\n\r\n")
        for _ in range(60):
            sock.sendall(b"x")
            time.sleep(0.05)

    with monitor(tmp_path, behave, deadline_s=0.3) as made:
        began = time.monotonic()
        with pytest.raises(VmmError, match=r"within 0.3 s"):
            made.stop_vcpus()
        assert time.monotonic() - began < 2


def test_each_part_of_an_answer_has_the_time_that_is_left_for_all() -> None:
    ours, theirs = socket.socketpair()
    with theirs, api._Socket(fileno=ours.detach()) as one:
        one.settimeout(100)
        one.ends_at = time.monotonic() + 5
        theirs.sendall(b"x")
        assert one.recv_into(bytearray(1)) == 1
        assert (one.gettimeout() or 100) <= 5


@pytest.mark.parametrize("status", [200, 400])
def test_an_answer_that_is_cut_off_is_a_death(tmp_path: Path, status: int) -> None:
    """It is neither a success nor a refusal, after which nothing would have been done."""

    def behave(sock: socket.socket) -> None:
        take_request(sock)
        sock.sendall(f"HTTP/1.1 {status} \r\nContent-Length: 100\r\n\r\nhalf".encode())

    with monitor(tmp_path, behave) as made, pytest.raises(VmmDiedError):
        made.stop_vcpus()


def test_an_answer_that_does_not_end_is_refused(tmp_path: Path) -> None:
    with monitor(tmp_path, answering(answer(200, bytes(1 << 20)))) as made, pytest.raises(VmmError, match="more than"):
        made.stop_vcpus()


def test_what_is_said_of_a_failure_is_cut(tmp_path: Path) -> None:
    with monitor(tmp_path, answering(fault("x" * 50_000))) as made, pytest.raises(RejectedError) as caught:
        made.stop_vcpus()
    assert len(caught.value.reply) == 2000


@pytest.mark.parametrize("body", [b"", b"{", b'{"state":1}', b'"\xff"'])
def test_a_state_that_is_none_is_the_vmms_fault(tmp_path: Path, body: bytes) -> None:
    with monitor(tmp_path, answering(answer(200, body))) as made, pytest.raises(VmmError, match="nonsense"):
        made.vcpus_running()


def test_after_an_interrupted_request_the_vcpus_can_be_resumed(tmp_path: Path) -> None:
    """What a capture does that Ctrl-C ends: the answer on its way must not be taken for the next one's."""
    seen = []

    def interrupted(sock: socket.socket) -> None:
        take_request(sock)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        while sock.recv(65536):
            pass

    def resumed(sock: socket.socket) -> None:
        seen.append(take_request(sock))
        time.sleep(0.5)  # it finishes the snapshot first, which takes longer than a request may
        sock.sendall(NO_CONTENT)

    with monitor(tmp_path, interrupted, resumed, deadline_s=0.3) as made:
        with pytest.raises(KeyboardInterrupt):
            made.create_snapshot(vmstate="s", memory="m", diff=True)
        made.resume_vcpus()
    assert b"Resumed" in seen[0]


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(VmmDiedError, match="Could not reach Firecracker"):
        FirecrackerMonitor(tmp_path, deadline_s=1.0)
