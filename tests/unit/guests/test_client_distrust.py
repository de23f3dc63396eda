"""A guest whose agent lies: every wait of the host ends, every length is checked, and its memory and disk stay its own."""

from __future__ import annotations

import itertools
import os
import socket
import struct
import time
import tracemalloc
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from pathlib import Path

import pytest

from ramet.errors import GuestError, GuestTimeoutError, NoSpaceError, RametError, VmmDiedError
from ramet.guests import client as client_module
from ramet.guests import stream as stream_module
from ramet.guests import transfer, wire
from ramet.guests.client import AgentClient, GuestRefusedError
from ramet.guests.wire import Reply, Request
from tests.unit.guests.fake_agent import STARTED, FakeAgent, session

MIB = 1 << 20
SEED = bytes(64)
OK = wire.encode(Reply.OK)
REQUESTS: dict[str, Callable[[AgentClient], object]] = {
    "ping": lambda client: client.ping(timeout_s=0.2),
    "thaw": lambda client: client.thaw(timeout_s=0.2),
    "identity": lambda client: client.identity(
        generation=1, hostname="a", machine_id="0" * 32, seed=SEED, timeout_s=0.2
    ),
}


def exit_reply(signalled: int, value: int, timed_out: int) -> bytes:
    return wire.encode(Reply.EXIT, struct.pack("<BIB", signalled, value, timed_out))


def refused(kind: type[RametError], match: str) -> AbstractContextManager[object]:
    return pytest.raises(kind, match=match)


def answering(*answers: bytes) -> Callable[[FakeAgent], None]:
    """An agent that answers the first request with these bytes, and then only listens."""

    def behave(agent: FakeAgent) -> None:
        agent.greet()
        agent.request()
        agent.send(*answers)
        agent.wait_for_hangup()

    return behave


def flooding(piece: bytes, *, greet: bool = True) -> Callable[[FakeAgent], None]:
    """An agent that sends the same for ever."""

    def behave(agent: FakeAgent) -> None:
        if greet:
            agent.greet()
        while True:
            agent.send(piece * (65536 // len(piece)))

    return behave


# -- waits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_name", ["ping", "thaw", "identity"])
def test_silence_ends(request_name: str) -> None:
    with session(answering()) as client:
        begin = time.monotonic()
        with pytest.raises(GuestTimeoutError, match=r"did not answer within 0\.2 s"):
            REQUESTS[request_name](client)
        assert time.monotonic() - begin < 30


@pytest.mark.parametrize(
    ("piece", "greet"),
    [
        pytest.param(b"\xff", False, id="noise instead of a hello"),
        pytest.param(wire.MAGIC, False, id="hellos that begin and do not end"),
        pytest.param(wire.hello(bytes(16)), False, id="hellos of another session"),
        pytest.param(bytes((Reply.OK | wire.MORE, 0, 0, 0, 0)), True, id="a message without end and without bytes"),
    ],
)
def test_bytes_without_an_answer_end(piece: bytes, greet: bool) -> None:
    """Progress that leads nowhere is none."""
    with session(flooding(piece, greet=greet)) as client:
        begin = time.monotonic()
        with pytest.raises(GuestTimeoutError):
            client.ping(timeout_s=0.2)
        assert time.monotonic() - begin < 30


@pytest.mark.parametrize("piece", [b"", b"\xff" * 4096, wire.MAGIC, wire.hello(bytes(16))])
def test_no_session_without_an_answer_to_the_hello(piece: bytes) -> None:
    ours, theirs = socket.socketpair()
    with closing(theirs):
        theirs.sendall(piece)
        with pytest.raises(GuestTimeoutError, match=r"no session within 0\.2 s"):
            AgentClient.over(ours, deadline_s=0.2)
        assert ours.fileno() == -1, "it is closed"
        assert theirs.recv(100).startswith(wire.MAGIC)


def test_trickle_ends() -> None:
    """One byte now and then does not put the deadline off."""

    def behave(agent: FakeAgent) -> None:
        agent.greet()
        for byte in wire.encode(Reply.OK, bytes(60_000)):
            if agent.is_left_within(0.02):
                return
            agent.send(bytes((byte,)))

    with session(behave) as client:
        begin = time.monotonic()
        with pytest.raises(GuestTimeoutError):
            client.ping(timeout_s=0.3)
        assert time.monotonic() - begin < 30


def test_time_limit_that_the_agent_does_not_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "LIMIT_MARGIN_S", 0.1)
    late = pytest.raises(GuestTimeoutError, match="has not ended the command at its time limit")
    with session(answering(STARTED)) as client, late:
        client.exec(["true"], timeout_s=0.1)

    def chatter(agent: FakeAgent) -> None:
        agent.greet()
        agent.request()
        agent.send(STARTED)
        while True:
            agent.send(wire.encode(Reply.STDOUT, bytes(1000)) * 100)

    with session(chatter) as client, pytest.raises(GuestTimeoutError):
        client.exec(["true"], timeout_s=0.1, stdout=lambda data: None)


def test_copy_that_stands_still(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(client_module, "STALL_S", 0.1)
    monkeypatch.setattr(client_module, "SYNC_S", 0.2)
    (tmp_path / "src").write_bytes(bytes(MIB))
    silent = "has fallen silent"
    with (
        session(answering(STARTED)) as client,
        (tmp_path / "src").open("rb") as src,
        refused(GuestTimeoutError, silent),
    ):
        client.put(src.fileno(), "/x")
    with (
        session(answering(STARTED)) as client,
        (tmp_path / "dst").open("wb") as dst,
        refused(GuestTimeoutError, silent),
    ):
        client.get("/x", dst.fileno())


def test_agent_that_hangs_up() -> None:
    def behave(agent: FakeAgent) -> None:
        agent.greet()
        agent.request()

    with session(behave) as client, pytest.raises(VmmDiedError):
        client.ping()


# -- lengths and nonsense -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(bytes((0x80, 0, 0, 0, 0)), id="no frame"),
        pytest.param(bytes((Reply.OK, 1, 0, 1, 0)), id="frame too long"),
        pytest.param((bytes((Reply.OK | wire.MORE, 0, 0, 1, 0)) + bytes(65536)) * 17, id="message too long"),
        pytest.param(bytes((Reply.OK | wire.MORE, 0, 0, 0, 0)) + wire.encode(Reply.ERROR), id="interleaved"),
        pytest.param(OK, id="too short"),
        pytest.param(wire.encode(Reply.OK, bytes(40) + b"\xff\xff"), id="string longer than the message"),
        pytest.param(STARTED, id="another reply"),
        pytest.param(wire.encode(0x3F), id="unknown reply"),
        pytest.param(wire.encode(Reply.ERROR, b"\1"), id="error too short"),
    ],
)
def test_nonsense_is_an_error(answer: bytes) -> None:
    with session(answering(answer)) as client, pytest.raises(GuestError):
        client.ping()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(exit_reply(0, 256, 0), id="status 256"),
        pytest.param(exit_reply(1, 0xFFFFFFFF, 0), id="signal 4 billion"),
        pytest.param(exit_reply(2, 0, 0), id="signalled 2"),
        pytest.param(exit_reply(0, 0, 9), id="timed out 9"),
        pytest.param(wire.encode(Reply.EXIT), id="empty"),
        pytest.param(wire.encode(Reply.WINDOW), id="empty window"),
        pytest.param(OK, id="out of place"),
        pytest.param(STARTED, id="started again"),
    ],
)
def test_nonsense_during_a_command(answer: bytes) -> None:
    with session(answering(STARTED, answer)) as client, pytest.raises(GuestError):
        client.exec(["true"])


def test_output_without_end_has_a_limit() -> None:
    def behave(agent: FakeAgent) -> None:
        agent.greet()
        agent.request()
        agent.send(STARTED)
        for kind in itertools.cycle((Reply.STDOUT, Reply.STDERR)):
            agent.send(wire.encode(kind, bytes(60_000)))

    with session(behave) as client, pytest.raises(GuestError, match="more than 1000000 bytes"):
        client.exec(["yes"], max_output_bytes=1_000_000)


def test_memory_stays_bounded_whatever_is_sent() -> None:
    """Tens of megabytes through a callback, in frames and in empty messages, take a few here."""
    sent = [0]

    def behave(agent: FakeAgent) -> None:
        agent.greet()
        agent.request()
        agent.send(STARTED)
        piece = wire.encode(Reply.STDOUT, bytes(wire.PAYLOAD_MAX)) * 8 + wire.encode(Reply.STDERR) * 1000
        for _ in range(40):
            agent.send(piece)
            sent[0] += len(piece)
        agent.send(exit_reply(0, 0, 0))
        agent.wait_for_hangup()

    tracemalloc.start()
    try:
        with session(behave) as client:
            assert client.exec(["x"], stdout=lambda data: None, stderr=lambda data: None).status == 0
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sent[0] > 20 * MIB
    assert peak < 8 * MIB


# -- words ----------------------------------------------------------------------------------------------------------


def test_words_of_a_guest_cannot_drive_a_terminal() -> None:
    evil = "\x1b]0;owned\x07\r\n\x9b31m‮txt"
    error = wire.encode(Reply.ERROR, struct.pack("<I", 5) + wire.string(evil))
    with session(answering(error)) as client, pytest.raises(GuestRefusedError) as caught:
        client.ping()
    assert caught.value.errno == 5
    assert all(c.isprintable() for c in str(caught.value))
    pong = wire.encode(Reply.OK, bytes(40) + wire.string(evil))
    with session(answering(pong)) as client:
        assert client.ping().hostname.isprintable()


def test_words_of_a_guest_are_not_endless() -> None:
    error = wire.encode(Reply.ERROR, struct.pack("<I", 5) + wire.string("x" * 65535))
    with session(answering(error)) as client, pytest.raises(GuestRefusedError) as caught:
        client.ping()
    assert len(str(caught.value)) < 1000


# -- copies ---------------------------------------------------------------------------------------------------------


def header(size: int, mode: int = 0o644) -> bytes:
    return struct.pack("<QI", size, mode)


def out(data: bytes) -> bytes:
    return wire.encode(Reply.STDOUT, data)


@pytest.mark.parametrize(
    ("answers", "match"),
    [
        pytest.param([out(header(5)), out(b"123456")], "more than 5 bytes", id="more than announced"),
        pytest.param([out(header(5) + b"1234"), exit_reply(0, 0, 0)], "4 of 5 bytes", id="less than announced"),
        pytest.param([exit_reply(0, 0, 0)], "0 of 0 bytes", id="nothing"),
        pytest.param([out(header(5)[:7]), exit_reply(0, 0, 0)], "0 of 0 bytes", id="half a header"),
        pytest.param([out(header(5) + b"12345"), exit_reply(1, 9, 0)], "ended by signal 9", id="ended by a signal"),
        pytest.param([out(header(5)), wire.encode(Reply.STDERR, bytes(65536)) * 2], "more than 65536", id="words"),
    ],
)
def test_get_from_a_liar(tmp_path: Path, answers: list[bytes], match: str) -> None:
    with (
        session(answering(STARTED, *answers)) as client,
        (tmp_path / "dst").open("wb") as dst,
        refused(GuestError, match),
    ):
        client.get("/x", dst.fileno())
    assert (tmp_path / "dst").stat().st_size <= 5


def test_file_without_a_size_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "SIZELESS_MAX_BYTES", 100)
    answers = (STARTED, out(header(0)), out(bytes(101)))
    too_much = refused(GuestError, "more than 100 bytes")
    with session(answering(*answers)) as client, (tmp_path / "dst").open("wb") as dst, too_much:
        client.get("/proc/x", dst.fileno())


def test_more_than_the_disk_holds_is_refused_at_once(tmp_path: Path) -> None:
    answers = (STARTED, out(header(1 << 62) + b"1"))
    no_room = refused(NoSpaceError, "no room")
    with session(answering(*answers)) as client, (tmp_path / "dst").open("wb") as dst, no_room:
        client.get("/x", dst.fileno())
    assert (tmp_path / "dst").read_bytes() == b""


def test_header_may_come_in_pieces_and_set_no_more_than_mode_bits(tmp_path: Path) -> None:
    answers = [out(bytes((byte,))) for byte in header(3, 0o104755) + b"abc"]
    with session(answering(STARTED, *answers, exit_reply(0, 0, 0))) as client, (tmp_path / "dst").open("wb") as dst:
        meta = client.get("/x", dst.fileno())
    assert (meta.size_bytes, meta.mode) == (3, 0o4755)
    assert (tmp_path / "dst").read_bytes() == b"abc"


def test_put_that_fails_half_way_says_what_the_guest_said(tmp_path: Path) -> None:
    (tmp_path / "src").write_bytes(bytes(4 * MIB))
    words = wire.encode(Reply.STDERR, b"/x: No space left on device\n")
    full = refused(GuestRefusedError, "No space left")
    with session(answering(STARTED, words, exit_reply(0, 28, 0))) as client, (tmp_path / "src").open("rb") as src, full:
        client.put(src.fileno(), "/x")


def test_errors_are_all_ours() -> None:
    """Whatever an agent answers, what comes of it is a RametError."""
    generator = os.urandom
    for _ in range(60):
        answer = wire.encode(generator(1)[0] & 0x3F, generator(30)) + generator(20)
        with session(answering(answer, answer)) as client:
            for request in (REQUESTS["ping"], lambda c: c.exec(["x"], timeout_s=0.01)):
                try:
                    request(client)
                except RametError:
                    break


def test_a_connection_that_was_reset_without_a_word_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vsock whose device was captured: the guest's end is gone, and only what is sent there brings that to light."""
    monkeypatch.setattr(stream_module, "PROBE_S", 0.05)

    def behave(agent: FakeAgent) -> None:
        agent.greet()
        agent.request()
        agent.send(STARTED)
        while agent.request()[0] != Request.SIGNAL:
            pass  # the command's empty stdin
        # a guest answers what comes for a socket that it does not have with a reset

    with session(behave, probes=True) as client, refused(VmmDiedError, "its vsock was reset"):
        client.exec(["sleep", "1000"])


def test_probes_are_as_far_apart_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "PROBE_S", 0.1)
    took_s: list[float] = []

    def behave(agent: FakeAgent) -> None:
        agent.greet()
        agent.request()
        agent.send(STARTED)
        for _ in range(5):
            while agent.request()[0] != Request.SIGNAL:
                pass  # the command's empty stdin
        took_s.append(time.monotonic() - began_s)
        agent.send(exit_reply(0, 0, 0))
        agent.wait_for_hangup()

    began_s = time.monotonic()
    with session(behave, probes=True) as client:
        assert client.exec(["true"]).status == 0
    assert took_s[0] > 0.45, "five of them"


def test_a_silent_agent_is_not_probed_where_the_port_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "PROBE_S", 0.05)
    heard = []

    def behave(agent: FakeAgent) -> None:
        agent.greet()
        agent.request()
        agent.send(STARTED)
        agent.request()
        heard.append(agent.hears_within(0.3))
        agent.send(exit_reply(0, 0, 0))
        agent.wait_for_hangup()

    with session(behave) as client:
        assert client.exec(["true"]).status == 0
    assert heard == [False]
