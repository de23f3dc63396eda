"""The Python half of the wire protocol. What it shares with the agent is tested in test_agent_parser.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.errors import GuestError
from ramet.guests import wire
from ramet.guests.wire import Reader

EPOCH = bytes(range(16))


def test_hello_is_magic_version_epoch() -> None:
    assert wire.hello(EPOCH) == bytes.fromhex("f5d2c1cdc5d4faaf") + b"\x01" + EPOCH
    assert len(wire.hello(EPOCH)) == wire.HELLO_BYTES == 25


def test_frame_is_type_length_zero_payload() -> None:
    assert wire.encode(3, b"abc") == b"\x03\x03\x00\x00\x00abc"
    assert wire.encode(3) == b"\x03\x00\x00\x00\x00"


def test_long_payloads_are_split() -> None:
    frames = wire.encode(3, bytes(wire.PAYLOAD_MAX + 1))
    assert frames[:5] == b"\x43\x00\x00\x01\x00"
    assert frames[5 + wire.PAYLOAD_MAX :] == b"\x03\x01\x00\x00\x00\x00"


def test_magic_is_split_and_never_ends_a_message() -> None:
    assert wire.encode(3, wire.MAGIC) == b"\x43\x04\0\0\0" + wire.MAGIC[:4] + b"\x03\x04\0\0\0" + wire.MAGIC[4:]
    assert wire.encode(3, b"x" + wire.MAGIC[:1]) == b"\x43\x02\0\0\0x" + wire.MAGIC[:1] + b"\x03\0\0\0\0"


def test_no_byte_of_a_header_can_begin_the_magic() -> None:
    """What the agent relies on to tell a hello from a message."""
    assert all(byte >= 0x80 for byte in wire.MAGIC)
    assert all(len({byte}) == 1 and wire.MAGIC[0] not in wire.MAGIC[1:] for byte in wire.MAGIC)


@pytest.mark.parametrize("kind", [*wire.Request, *wire.Reply])
def test_numbers_leave_room_for_the_flag(kind: int) -> None:
    assert 0 < kind < wire.MORE


def test_decoder_drops_what_stands_before_its_own_hello() -> None:
    decoder = wire.Decoder(EPOCH)
    stale = wire.hello(bytes(16)) + wire.encode(3, b"stale") + wire.MAGIC[:5]
    assert decoder.feed(stale) == []
    assert decoder.synced is False
    assert decoder.feed(wire.hello(EPOCH) + wire.encode(4, b"mine")) == [(4, b"mine")]
    assert decoder.synced is True


def test_decoder_does_not_keep_what_it_drops() -> None:
    decoder = wire.Decoder(EPOCH)
    for _ in range(100):
        decoder.feed(bytes(100_000))
    assert len(decoder._buffer) < wire.HELLO_BYTES


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (b"\x80\0\0\0\0", "no frame"),
        (b"\x20\0\0\0\1", "no frame"),
        (b"\x20\1\0\1\0", "no frame"),
        (b"\x60\1\0\0\0x\x21\0\0\0\0", "interleaved"),
        ((b"\x60\0\0\1\0" + bytes(65536)) * 16 + b"\x20\1\0\0\0", "more than 1048576"),
    ],
)
def test_decoder_refuses_what_is_no_message(bad: bytes, match: str) -> None:
    decoder = wire.Decoder(EPOCH)
    with pytest.raises(GuestError, match=match):
        decoder.feed(wire.hello(EPOCH) + bad)


@given(st.text(st.characters(exclude_characters="\0"), max_size=300))
def test_strings_come_back(text: str) -> None:
    try:
        raw = wire.string(text)
    except UnicodeEncodeError:
        return  # lone surrogates that stand for no byte
    reader = Reader(raw)
    assert reader.take(reader.integer(2)) == text.encode("utf-8", "surrogateescape")
    assert reader.left == 0


@pytest.mark.parametrize("text", ["a\0b", "x" * 65536])
def test_strings_that_cannot_be_sent(text: str) -> None:
    with pytest.raises(ValueError, match=r"NUL|65535"):
        wire.string(text)


def test_reader_checks_every_length() -> None:
    with pytest.raises(GuestError, match="too short"):
        Reader(b"123").integer(4)
    with pytest.raises(GuestError, match="too short"):
        Reader(b"\x05\0abc").text()


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"plain", "plain"),
        ("grüße".encode(), "grüße"),
        (b"\x1b[31m\r\n", "\\x1b[31m\\r\\n"),
        (b"\xff", "�"),
        ("\u202etxt\u2028".encode(), "\\u202etxt\\u2028"),
        (b"y" * 500, "y" * 400 + "…"),
    ],
)
def test_printable(raw: bytes, shown: str) -> None:
    assert wire.printable(raw) == shown
