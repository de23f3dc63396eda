"""A running command as the client drives it, over a stream that a test plays."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from contextlib import closing

import pytest

from ramet.errors import GuestError, GuestTimeoutError, HostError
from ramet.guests import wire
from ramet.guests.exec_session import CONTROLS_AT_ONCE, ExecControl, ExecSession, Output
from ramet.guests.wire import GuestRefusedError, Reply, Request
from ramet.model import ExecResult

EXIT = (Reply.EXIT, struct.pack("<BIB", 0, 3, 0))
Message = tuple[int, bytes]


def window(count: int) -> Message:
    return Reply.WINDOW, count.to_bytes(4, "little")


class Script:
    """A stream whose every exchange brings the next batch of messages, and which tells what was sent by then."""

    def __init__(self, *batches: list[Message]) -> None:
        self.batches = list(batches)
        self.sent: list[tuple[Request, bytes]] = []
        self.sent_before: list[int] = []
        self.waiting: list[Message] = []
        self.ends: list[float | None] = []

    def send(self, kind: Request, payload: bytes = b"") -> None:
        self.sent.append((kind, payload))

    def exchange(self, *, end_s: float | None, extra: Sequence[int] = ()) -> list[int] | None:
        self.ends.append(end_s)
        self.sent_before.append(sum(len(payload) for kind, payload in self.sent if kind is Request.STDIN))
        if not self.batches:
            return None
        self.waiting = self.batches.pop(0)
        return [] if self.waiting else list(extra)

    def take_messages(self) -> list[Message]:
        found, self.waiting = self.waiting, []
        return found

    def stdin(self) -> bytes:
        return b"".join(payload for kind, payload in self.sent if kind is Request.STDIN)


def run(
    script: Script,
    *,
    stdin: int | bytes | None = None,
    stdout: Output | None = None,
    limit_bytes: int = 1000,
    control: ExecControl | None = None,
    end_s: float | None = None,
    stall_s: float | None = None,
) -> ExecResult:
    session = ExecSession(
        script, stdin=stdin, stdout=stdout, stderr=None, limit_bytes=limit_bytes, end_s=end_s, stall_s=stall_s
    )
    return session.run(77, control)


def test_no_stdin_is_the_end_of_stdin() -> None:
    script = Script([EXIT])
    result = run(script)
    assert script.sent == [(Request.STDIN, b"")]
    assert (result.status, result.pid) == (3, 77)


def test_stdin_is_sent_up_to_the_window_and_goes_on_with_credit() -> None:
    data = bytes(wire.STDIN_WINDOW + 70_000)
    script = Script([window(10)], [window(60_000)], [window(wire.STDIN_WINDOW)], [EXIT])
    run(script, stdin=data)
    assert script.sent_before == [wire.STDIN_WINDOW, wire.STDIN_WINDOW + 10, wire.STDIN_WINDOW + 60_010, len(data)]
    assert script.stdin() == data
    assert script.sent[-1] == (Request.STDIN, b"")


def test_credit_beyond_the_window_is_no_credit() -> None:
    """An agent that grants too much does not make the host send, or hold, more than the window at once."""
    script = Script([window(0xFFFFFFFF), window(0xFFFFFFFF)], [EXIT])
    run(script, stdin=bytes(16 * wire.STDIN_WINDOW))
    assert script.sent_before == [wire.STDIN_WINDOW, 2 * wire.STDIN_WINDOW]


def test_descriptor_is_read_no_further_than_the_window() -> None:
    """What the guest does not take stays where it is."""
    read_fd, write_fd = os.pipe()
    with os.fdopen(write_fd, "wb") as writer:
        writer.write(b"abc")
    script = Script([], [], [EXIT])
    run(script, stdin=read_fd)
    os.close(read_fd)
    assert script.sent == [(Request.STDIN, b"abc"), (Request.STDIN, b"")]


def test_descriptor_that_cannot_be_read() -> None:
    fd = os.open("/", os.O_RDONLY)
    try:
        with pytest.raises(HostError, match="Could not read what to send"):
            run(Script([], [EXIT]), stdin=fd)
    finally:
        os.close(fd)


def test_output_is_collected_apart_or_goes_to_callbacks() -> None:
    messages: list[Message] = [(Reply.STDOUT, b"a"), (Reply.STDERR, b"b"), (Reply.STDOUT, b"c"), EXIT]
    result = run(Script(messages))
    assert (result.stdout, result.stderr) == (b"ac", b"b")
    heard: list[bytes] = []
    result = run(Script(messages), stdout=heard.append)
    assert (heard, result.stdout, result.stderr) == ([b"a", b"c"], b"", b"b")


def test_collected_output_has_a_limit_for_both() -> None:
    with pytest.raises(GuestError, match="more than 1000 bytes"):
        run(Script([(Reply.STDOUT, bytes(600)), (Reply.STDERR, bytes(401)), EXIT]))


def test_error_of_the_agent_is_raised_with_its_errno() -> None:
    with pytest.raises(GuestRefusedError) as caught:
        run(Script([(Reply.ERROR, struct.pack("<I", 75) + wire.string("more stdin"))]))
    assert caught.value.errno == 75


def test_messages_that_had_come_before_are_seen_first() -> None:
    """The exit of a short command comes with its start: nothing may wait for more."""
    script = Script([EXIT, (Reply.STDOUT, b"too late")])
    assert run(script).status == 3
    assert len(script.ends) == 1


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (struct.pack("<BIB", 0, 0, 0), (0, None, False, 0)),
        (struct.pack("<BIB", 0, 255, 0), (255, None, False, 255)),
        (struct.pack("<BIB", 1, 9, 0), (None, 9, False, 137)),
        (struct.pack("<BIB", 1, 15, 1), (None, 15, True, 124)),
        (struct.pack("<BIB", 0, 5, 1), (5, None, True, 124)),
    ],
)
def test_exit(payload: bytes, expected: tuple[int | None, int | None, bool, int]) -> None:
    result = run(Script([(Reply.EXIT, payload)]))
    assert (result.status, result.signal, result.timed_out, result.exit_status) == expected


def test_ends_are_handed_to_the_stream() -> None:
    script = Script([EXIT])
    run(script, end_s=123.0)
    assert script.ends == [123.0]
    with pytest.raises(GuestTimeoutError, match="time limit"):
        run(Script(), end_s=123.0)
    with pytest.raises(GuestTimeoutError, match="fallen silent"):
        run(Script(), stall_s=5.0)


def test_signals_and_sizes_are_passed_on() -> None:
    with closing(ExecControl()) as control:
        control.send_signal(15)
        control.resize(50, 132)
        control.resize(1 << 20, 5)
        script = Script([], [EXIT])
        run(script, control=control)
    assert script.sent[1:] == [
        (Request.SIGNAL, b"\x0f"),
        (Request.RESIZE, struct.pack("<HH", 50, 132)),
        (Request.RESIZE, struct.pack("<HH", 65535, 5)),
    ]


def test_control_never_blocks_and_drops_what_has_no_room() -> None:
    """It is called from signal handlers."""
    with closing(ExecControl()) as control:
        for _ in range(100_000):
            control.send_signal(1)
        taken = control.take()
        assert 100 < len(taken) <= CONTROLS_AT_ONCE
        assert set(taken) == {(Request.SIGNAL, b"\x01")}


def test_control_is_closed_twice() -> None:
    control = ExecControl()
    control.close()
    control.close()
