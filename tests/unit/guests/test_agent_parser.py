"""The C parser and wire.py agree, for any payload, however the stream is cut; what a half-sent request leaves reaches nobody."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.errors import GuestError
from ramet.guests import agent_build, wire
from tests.capabilities import requires
from tests.unit.guests import native_agent

pytestmark = requires("gcc")
EPOCH = bytes(range(16))


class Event(IntEnum):
    NONE = 0
    HELLO = 1
    VERSION = 2
    MESSAGE = 3
    GARBAGE = 4


class Seen(NamedTuple):
    event: Event
    kind: int = 0
    payload: bytes = b""


class Library:
    """proto.c and bytes.c; undefined behaviour traps, and so ends the test run."""

    def __init__(self, path: Path) -> None:
        self._c = ctypes.CDLL(str(path))
        self._c.shim_parser.restype = ctypes.c_void_p
        self._c.shim_parser_free.argtypes = [ctypes.c_void_p]
        self._c.parser_feed.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
        self._c.parser_feed.restype = ctypes.c_bool
        self._c.shim_next.argtypes = [ctypes.c_void_p] + [ctypes.c_void_p] * 3
        self._c.shim_encode.argtypes = [
            ctypes.c_uint8,
            ctypes.c_char_p,
            ctypes.c_size_t,
            ctypes.c_void_p,
            ctypes.c_void_p,
        ]
        self._c.shim_encode.restype = ctypes.c_void_p
        self._c.shim_queue_free.argtypes = [ctypes.c_void_p]

    def encode(self, kind: int, payload: bytes) -> bytes:
        data, length = ctypes.c_void_p(), ctypes.c_size_t()
        queue = self._c.shim_encode(kind, payload, len(payload), ctypes.byref(data), ctypes.byref(length))
        try:
            return ctypes.string_at(data, length.value)
        finally:
            self._c.shim_queue_free(queue)

    def parse(self, pieces: Sequence[bytes]) -> list[Seen]:
        """What a fresh parser sees in a stream that comes in these pieces."""
        kind, data, length = ctypes.c_uint8(), ctypes.c_void_p(), ctypes.c_size_t()
        parser = self._c.shim_parser()
        seen: list[Seen] = []
        try:
            for piece in pieces:
                assert self._c.parser_feed(parser, piece, len(piece))
                while True:
                    event = Event(
                        self._c.shim_next(parser, ctypes.byref(kind), ctypes.byref(data), ctypes.byref(length))
                    )
                    if event is Event.NONE:
                        break
                    if event is Event.MESSAGE:
                        seen.append(Seen(event, kind.value, ctypes.string_at(data, length.value)))
                    else:
                        seen.append(Seen(event))
        finally:
            self._c.shim_parser_free(parser)
        return seen


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return Library(native_agent.build_parser_library(tmp_path_factory.mktemp("parser") / "parser.so"))


# Payloads that are likely to hold, begin and end with parts of the magic.
PARTS = st.one_of(
    st.sampled_from([wire.MAGIC[:n] for n in range(1, 9)] + [wire.MAGIC[n:] for n in range(1, 8)]),
    st.binary(max_size=40),
    st.integers(65530, 65540).map(bytes),
)
PAYLOADS = st.lists(PARTS, max_size=6).map(b"".join)
KINDS = st.integers(1, 0x3F)
MESSAGES = st.lists(st.tuples(KINDS, PAYLOADS), max_size=4)
CUTS = st.lists(st.integers(0, 1 << 20), max_size=8)


def cut(stream: bytes, cuts: Sequence[int]) -> list[bytes]:
    places = sorted({place % (len(stream) + 1) for place in cuts})
    return [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)]


@given(kind=KINDS, payload=PAYLOADS)
@settings(deadline=None)
def test_both_sides_encode_alike(library: Library, kind: int, payload: bytes) -> None:
    frames = wire.encode(kind, payload)
    assert library.encode(kind, payload) == frames
    assert wire.MAGIC not in frames
    assert not any(frames.endswith(wire.MAGIC[:n]) for n in range(1, 9)), "a hello could begin here"


@given(messages=MESSAGES, cuts=CUTS)
@settings(deadline=None)
def test_agent_reads_what_the_client_sends(
    library: Library, messages: list[tuple[int, bytes]], cuts: list[int]
) -> None:
    stream = wire.hello(EPOCH) + b"".join(wire.encode(kind, payload) for kind, payload in messages)
    expected = [Seen(Event.HELLO), *(Seen(Event.MESSAGE, kind, payload) for kind, payload in messages)]
    assert library.parse(cut(stream, cuts)) == expected


@given(messages=MESSAGES, cuts=CUTS, before=PAYLOADS)
@settings(deadline=None)
def test_client_reads_what_the_agent_sends(
    library: Library, messages: list[tuple[int, bytes]], cuts: list[int], before: bytes
) -> None:
    """Whatever stands before the hello, another session's hello included."""
    before += wire.hello(bytes(16)) + before
    stream = before + wire.hello(EPOCH) + b"".join(library.encode(kind, payload) for kind, payload in messages)
    decoder = wire.Decoder(EPOCH)
    assert [found for piece in cut(stream, cuts) for found in decoder.feed(piece)] == messages


@given(kind=KINDS, payload=PAYLOADS, sent=st.integers(0, 1 << 20), then=MESSAGES, cuts=CUTS)
@settings(deadline=None)
def test_half_a_message_is_lost_whole(
    library: Library, kind: int, payload: bytes, sent: int, then: list[tuple[int, bytes]], cuts: list[int]
) -> None:
    """H72. A client is killed at any byte and another one's stream follows, cut anywhere: its messages are read, and none that
    nobody sent. Where the first message was whole it may be read, too.
    """
    frames = wire.encode(kind, payload)
    sent %= len(frames)
    stream = wire.hello(bytes(16)) + frames[:sent] + wire.hello(EPOCH)
    stream += b"".join(wire.encode(kind, payload) for kind, payload in then)
    seen = library.parse(cut(stream, cuts))
    last_hello = max(place for place, found in enumerate(seen) if found.event is Event.HELLO)
    assert seen[last_hello + 1 :] == [Seen(Event.MESSAGE, kind, payload) for kind, payload in then]
    assert [found for found in seen[:last_hello] if found.event is Event.MESSAGE] == []


@given(
    noise=st.lists(st.one_of(PAYLOADS, st.just(wire.hello(EPOCH))), max_size=6).map(b"".join), cuts=CUTS, then=MESSAGES
)
@settings(deadline=None)
def test_any_noise_is_survived(library: Library, noise: bytes, cuts: list[int], then: list[tuple[int, bytes]]) -> None:
    stream = noise + wire.hello(EPOCH) + b"".join(wire.encode(kind, payload) for kind, payload in then)
    seen = library.parse(cut(stream, cuts))
    expected = [Seen(Event.HELLO), *(Seen(Event.MESSAGE, kind, payload) for kind, payload in then)]
    assert seen[len(seen) - len(expected) :] == expected


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, wire.MESSAGE_MAX])
def test_sizes_at_the_limits(library: Library, size: int) -> None:
    stream = [wire.hello(EPOCH), wire.encode(3, bytes(size))]
    assert library.parse(stream) == [Seen(Event.HELLO), Seen(Event.MESSAGE, 3, bytes(size))]
    decoder = wire.Decoder(EPOCH)
    assert decoder.feed(b"".join(stream)) == [(3, bytes(size))]


def frame(kind: int, length: int, last: int = 0, payload: bytes = b"") -> bytes:
    return bytes((kind,)) + length.to_bytes(3, "little") + bytes((last,)) + payload


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(frame(0x80, 0), id="type"),
        pytest.param(frame(1, 65537), id="length"),
        pytest.param(frame(1, 0xFFFFFF), id="largest length"),
        pytest.param(frame(1, 0, 1), id="last byte"),
        pytest.param(frame(1 | wire.MORE, 1, 0, b"x") + frame(2, 0), id="interleaved"),
        pytest.param(frame(1 | wire.MORE, 65536, 0, bytes(65536)) * 16 + frame(1, 1), id="too long"),
    ],
)
def test_what_is_no_frame(library: Library, bad: bytes) -> None:
    """Both sides see it, and the agent's goes on to the next hello even if that has begun in the same piece."""
    hello = wire.hello(EPOCH)
    for split in range(len(hello)):
        seen = library.parse([hello + bad + hello[:split], hello[split:] + wire.encode(5, b"x")])
        expected = [Seen(Event.HELLO), Seen(Event.GARBAGE), Seen(Event.HELLO), Seen(Event.MESSAGE, 5, b"x")]
        if split >= len(wire.MAGIC):
            expected = expected[2:]  # the magic was seen first
        assert seen == expected
    with pytest.raises(GuestError):
        wire.Decoder(EPOCH).feed(hello + bad)


def test_unknown_version_is_told_apart(library: Library) -> None:
    stream = wire.MAGIC + b"\x07" + EPOCH + wire.encode(1)
    assert library.parse([stream]) == [Seen(Event.VERSION)]


def test_message_of_type_0_is_not_glued_to_the_next(library: Library) -> None:
    seen = library.parse([wire.hello(EPOCH) + wire.encode(0, b"abc") + wire.encode(1)])
    assert seen == [Seen(Event.HELLO), Seen(Event.MESSAGE, 0, b"abc"), Seen(Event.MESSAGE, 1, b"")]


def test_event_numbers_are_those_of_the_header() -> None:
    header = (agent_build.sources()[0].parent / "proto.h").read_text()
    assert "enum event { EV_NONE, EV_HELLO, EV_VERSION, EV_MESSAGE, EV_GARBAGE };" in header
    for name in ("PAYLOAD_MAX", "PROTOCOL_VERSION", "MORE"):
        assert int(header.split(f"#define {name} ")[1].split()[0].rstrip("u"), 0) == getattr(wire, name)
