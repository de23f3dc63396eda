"""Sessions of the agent, run natively: the hello, what comes instead of it, several clients, clients that are killed."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from ramet.errors import GuestError
from ramet.guests import wire
from ramet.guests.client import AgentClient, GuestRefusedError
from ramet.guests.wire import Reply, Request
from ramet.process import wait_until
from tests.capabilities import requires
from tests.unit.guests import native_agent
from tests.unit.guests.native_agent import DEADLINE_S, NativeAgent
from tests.unit.guests.raw_client import EPOCH, Raw, exec_message, refusal

pytestmark = requires("gcc")
PING = wire.encode(Request.PING)


@pytest.fixture
def raw(agent: NativeAgent) -> Iterator[Raw]:
    with closing(agent.connect()) as sock:
        yield Raw(sock)


@pytest.fixture
def port(harness: Path, tmp_path: Path) -> Iterator[tuple[NativeAgent, socket.socket]]:
    with native_agent.port_agent(harness, tmp_path) as found:
        yield found


@pytest.mark.parametrize(
    ("how", "found"),
    [("overflow", "heap-buffer-overflow"), ("undefined", "signed integer overflow"), ("leak", "LeakSanitizer")],
)
def test_sanitizers_find_what_they_are_here_for(harness: Path, how: str, found: str) -> None:
    done = subprocess.run([harness, "misbehave", how], capture_output=True, text=True, check=False, timeout=DEADLINE_S)
    assert done.returncode != 0
    assert found in done.stderr


def test_ping_keeps_its_nonce_and_counts_up(agent: NativeAgent) -> None:
    with agent.client() as one, agent.client() as other:
        first, second, third = one.ping(), one.ping(), other.ping()
    assert first.nonce == second.nonce == third.nonce
    assert first.tick < second.tick < third.tick
    assert first.uptime_ns < second.uptime_ns
    assert first.hostname == socket.gethostname()


def test_nonce_is_born_with_the_agent(agent: NativeAgent, own_agent: NativeAgent) -> None:
    with agent.client() as one, own_agent.client() as other:
        assert one.ping().nonce != other.ping().nonce


def test_garbage_before_the_hello_is_dropped(raw: Raw) -> None:
    raw.send(os.urandom(100_000).replace(wire.MAGIC, b""), wire.hello(EPOCH), PING)
    assert raw.receive()[0] == Reply.OK


def test_nothing_is_answered_without_a_hello(raw: Raw) -> None:
    raw.send(PING, exec_message("true"))
    raw.send(wire.hello(EPOCH), PING)
    assert raw.receive()[0] == Reply.OK
    assert raw.messages == []


def test_hello_of_another_version_is_answered_with_ours(agent: NativeAgent) -> None:
    with closing(agent.connect()) as sock:
        sock.settimeout(DEADLINE_S)
        sock.sendall(wire.MAGIC + bytes((99,)) + EPOCH + PING)
        answer = b"".join(iter(lambda: sock.recv(4096), b""))
    assert answer == wire.hello(EPOCH), "it says its version, answers no request, and hangs up"


def test_client_says_that_the_version_is_another() -> None:
    decoder = wire.Decoder(EPOCH)
    with pytest.raises(GuestError, match="version 99 of the protocol"):
        decoder.feed(wire.MAGIC + bytes((99,)) + EPOCH)


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(bytes((Request.PING, 1, 0, 1, 0)), id="a frame of 65,537 bytes"),
        pytest.param(bytes((Request.PING, 0, 0, 0, 1)), id="a header that ends with 1"),
        pytest.param(bytes((0x80, 0, 0, 0, 0)), id="a type of 0x80"),
        pytest.param(bytes((Request.EXEC | wire.MORE, 0, 0, 0, 0)) + PING, id="two messages interleaved"),
        pytest.param(
            (bytes((Request.EXEC | wire.MORE, 0, 0, 1, 0)) + bytes(65536)) * 17, id="a message of more than a MiB"
        ),
    ],
)
def test_what_no_client_sends_ends_the_connection(raw: Raw, frame: bytes) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):  # it need not take all of it
        raw.send(wire.hello(EPOCH), frame)
    assert raw.hangs_up()


def test_largest_message_is_taken(raw: Raw) -> None:
    raw.send(wire.hello(EPOCH), wire.encode(Request.PING, bytes(wire.MESSAGE_MAX)))
    kind, payload = raw.receive()
    assert kind == Reply.ERROR
    assert "malformed ping" in str(refusal(payload))


@pytest.mark.parametrize("kind", [0, 10, 0x20, 0x3F])
def test_unknown_request_is_refused_by_name(raw: Raw, kind: int) -> None:
    raw.send(wire.hello(EPOCH), wire.encode(kind, b"payload"), PING)
    code, payload = raw.receive()
    assert code == Reply.ERROR
    assert refusal(payload).errno == 38
    assert raw.receive()[0] == Reply.OK, "the session goes on"


@pytest.mark.parametrize("kind", [Request.EXEC, Request.QUIESCE, Request.IDENTITY, Request.SHUTDOWN, Request.THAW])
def test_malformed_requests_are_refused(raw: Raw, kind: Request) -> None:
    raw.send(wire.hello(EPOCH), wire.encode(kind, b"\xff" * 7))
    code, payload = raw.receive()
    assert code == Reply.ERROR
    assert refusal(payload).errno == 22


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(
            struct.pack("<IIHH", 0, 0, 0, 0) + wire.string("") + struct.pack("<I", 0xFFFFFFFF), id="4 billion"
        ),
        pytest.param(
            struct.pack("<IIHH", 0, 0, 0, 0) + wire.string("") + struct.pack("<I", 1) + b"\xff\xff", id="short"
        ),
        pytest.param(struct.pack("<IIHH", 0, 0, 0, 0) + wire.string("") + wire.strings([]) * 2, id="no argv"),
        pytest.param(struct.pack("<IIHH", 16, 0, 0, 0) + wire.string("") + wire.strings(["x"]) * 2, id="unknown flag"),
        pytest.param(
            struct.pack("<IIHH", 0, 0, 0, 0) + wire.string("") + struct.pack("<I", 1) + b"\2\0a\0" + wire.strings([]),
            id="NUL",
        ),
    ],
)
def test_lengths_in_an_exec_request_are_checked(raw: Raw, payload: bytes) -> None:
    raw.send(wire.hello(EPOCH), wire.encode(Request.EXEC, payload))
    code, answer = raw.receive()
    assert code == Reply.ERROR
    assert refusal(answer).errno == 22


def test_busy_session_refuses_a_second_request(raw: Raw) -> None:
    raw.send(wire.hello(EPOCH), exec_message("cat"), PING, exec_message("true"))
    answers = [raw.receive() for _ in range(3)]
    errors = [payload for kind, payload in answers if kind == Reply.ERROR]
    assert sorted(kind for kind, _ in answers) == [Reply.ERROR, Reply.ERROR, Reply.STARTED]
    assert [refusal(payload).errno for payload in errors] == [16, 16]


def test_hello_ends_the_command_of_the_client_before(raw: Raw) -> None:
    raw.send(wire.hello(b"x" * 16), exec_message("sleep", "1000"))
    raw.send(wire.hello(EPOCH), PING)
    assert raw.receive()[0] == Reply.OK


def test_closing_ends_the_command(own_agent: NativeAgent) -> None:
    with closing(own_agent.connect()) as sock:
        Raw(sock).send(wire.hello(EPOCH), exec_message("sleep", "1000"))
        [pid] = wait_until(lambda: own_agent.children() or None, DEADLINE_S, what="the command")
        wait_until(lambda: b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes(), DEADLINE_S, what="its program")

    def is_gone() -> bool:
        with own_agent.client() as client:
            client.exec(["true"])  # collects what was killed
        return not Path(f"/proc/{pid}").exists()

    wait_until(is_gone, DEADLINE_S, what="the end of the command")


def test_many_clients_at_once(agent: NativeAgent) -> None:
    results: list[bytes] = []

    def work(number: int) -> None:
        with agent.client() as client:
            outputs = [client.exec(["cat"], stdin=b"%d " % number * 5000).stdout for _ in range(3)]
            results.extend(output.split()[-1] for output in outputs)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == sorted(b"%d" % number for number in range(10) for _ in range(3))


def test_connections_are_limited(own_agent: NativeAgent) -> None:
    with ExitStack() as stack:
        for _ in range(64):
            stack.enter_context(own_agent.client()).ping()
        extra = Raw(stack.enter_context(closing(own_agent.connect())))
        assert extra.hangs_up()
    own_agent.settle()
    with own_agent.client() as client:
        client.ping()


def test_sessions_leave_no_descriptor_and_no_zombie(own_agent: NativeAgent) -> None:
    before = own_agent.settle()
    for _ in range(20):
        with closing(own_agent.connect()) as sock:
            Raw(sock).send(wire.hello(EPOCH), exec_message("sleep", "1000"))
        with closing(own_agent.connect()) as sock:
            Raw(sock).send(wire.hello(EPOCH), exec_message("cat", flags=wire.FLAG_PTY), exec_message("true"))
        with own_agent.client() as client:
            client.exec(["true"], pty=(24, 80))
            client.exec(["true"], detach=True)
            with pytest.raises(GuestRefusedError):
                client.exec(["/nonexistent"])

    def is_clean() -> bool:
        with own_agent.client() as client:
            client.exec(["true"])
        return not own_agent.children()

    wait_until(is_clean, DEADLINE_S, what="the end of all children")
    assert own_agent.settle() == before


def test_client_that_does_not_read_is_dropped(raw: Raw) -> None:
    """Replies to what it asks for may not fill the guest's memory."""
    raw.send(wire.hello(EPOCH))
    requests = wire.encode(0x3F) * 10_000
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        raw.sock.sendall(requests * 100)  # each is answered with an error of 40 bytes


# -- a port that outlives its clients (H72) ------------------------------------------------------------------------


def client_of(stream: socket.socket) -> AgentClient:
    return AgentClient.over(stream.dup(), deadline_s=DEADLINE_S)


@pytest.mark.parametrize("cut", range(1, 5 + 60, 7))
def test_half_a_frame_does_not_reach_the_next_client(port: tuple[NativeAgent, socket.socket], cut: int) -> None:
    _, stream = port
    half = exec_message("touch", "should-never-appear", "x" * 20)[: -cut if cut < 60 else 3]
    stream.sendall(wire.hello(EPOCH) + half)
    with client_of(stream) as client:
        assert client.exec(["echo", "hello"]).stdout == b"hello\n"


@pytest.mark.parametrize("split", range(1, wire.HELLO_BYTES))
def test_hello_may_come_in_pieces_behind_half_a_frame(
    port: tuple[NativeAgent, socket.socket], split: int, tmp_path: Path
) -> None:
    """Half a frame that lacks just as many bytes as the first piece of the next hello has: no message may come of the two."""
    agent, stream = port
    marker = tmp_path / "appeared"
    frame = exec_message("touch", str(marker))
    stream.sendall(wire.hello(b"y" * 16) + frame[:-split])
    hello = wire.hello(EPOCH)
    raw = Raw(stream)
    raw.send(hello[:split])
    wait_until(lambda: unread(stream) == 0, DEADLINE_S, what="the agent to have read the first piece")
    raw.send(hello[split:], PING)
    assert raw.receive()[0] == Reply.OK
    assert raw.messages == []
    assert agent.process.poll() is None
    assert not marker.exists()


def unread(stream: socket.socket) -> int:
    """Bytes that the other side has not received yet (SIOCOUTQ)."""
    import fcntl

    return int.from_bytes(fcntl.ioctl(stream, 0x5411, bytes(4)), "little")


def test_garbage_then_half_a_magic_then_its_rest(port: tuple[NativeAgent, socket.socket]) -> None:
    """What makes no sense must not take the beginning of the next hello with it."""
    _, stream = port
    hello = wire.hello(EPOCH)
    raw = Raw(stream)
    raw.send(wire.hello(b"z" * 16), b"\x7f\xff\xff\xff\xff", hello[:5])
    wait_until(lambda: unread(stream) == 0, DEADLINE_S, what="the agent to have read the first piece")
    raw.send(hello[5:], PING)
    assert raw.receive()[0] == Reply.OK


def test_port_survives_what_ends_a_connection(port: tuple[NativeAgent, socket.socket]) -> None:
    _, stream = port
    stream.sendall(wire.MAGIC + bytes((99,)) + EPOCH)
    stream.sendall(wire.hello(EPOCH) + b"\x80\x80\x80\x80\x80")
    stream.sendall(wire.hello(EPOCH) + wire.encode(Request.STDIN, b"nobody asked"))
    with client_of(stream) as client:
        client.ping()


def test_killed_clients_output_does_not_reach_the_next(port: tuple[NativeAgent, socket.socket]) -> None:
    _, stream = port
    stream.sendall(wire.hello(EPOCH) + exec_message("yes"))
    Raw(stream).receive()
    with client_of(stream) as client:
        assert client.exec(["echo", "mine"]).stdout == b"mine\n"


def test_command_under_way_is_no_obstacle(port: tuple[NativeAgent, socket.socket]) -> None:
    """One that is stopped before it could run, as in a frozen workload, keeps neither its session nor others waiting."""
    agent, stream = port
    with agent.frozen_workload():
        stream.sendall(wire.hello(EPOCH) + exec_message("true"))
        wait_until(lambda: agent.children() or None, DEADLINE_S, what="the child")
        with client_of(stream) as client:
            client.ping()
            client.thaw()
