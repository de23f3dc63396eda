"""The agent's wire protocol: frames, messages and the hello (drawn in agent/README.md). Pure functions over bytes."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from ramet.errors import GuestError

MAGIC: Final = bytes((0xF5, 0xD2, 0xC1, 0xCD, 0xC5, 0xD4, 0xFA, 0xAF))
PROTOCOL_VERSION: Final = 1
EPOCH_BYTES: Final = 16
HEADER_BYTES: Final = 5
PAYLOAD_MAX: Final = 65536
MESSAGE_MAX: Final = 1024 * 1024
STDIN_WINDOW: Final = 256 * 1024
MORE: Final = 0x40
STRING_MAX: Final = 65535


class Request(IntEnum):
    PING = 1
    EXEC = 2
    STDIN = 3
    SIGNAL = 4
    RESIZE = 5
    PUT = 6
    DATA = 7
    END = 8
    GET = 9
    QUIESCE = 10
    THAW = 11
    IDENTITY = 12
    SHUTDOWN = 13


class Reply(IntEnum):
    OK = 0x20
    ERROR = 0x21
    STDOUT = 0x22
    STDERR = 0x23
    EXIT = 0x24
    WINDOW = 0x25
    META = 0x26
    DATA = 0x27
    END = 0x28
    STARTED = 0x29


def hello(epoch: bytes) -> bytes:
    """What opens a session, in both directions."""
    return MAGIC + bytes((PROTOCOL_VERSION,)) + epoch


def encode(kind: int, payload: bytes = b"") -> bytes:
    """One message as frames; split wherever the magic would appear inside one frame."""
    frames = []
    position = 0
    while True:
        piece = payload[position : position + PAYLOAD_MAX]
        found = piece.find(MAGIC)
        if found >= 0:
            piece = piece[: found + len(MAGIC) // 2]
        position += len(piece)
        more = position < len(payload)
        frames.append(bytes((kind | MORE if more else kind,)) + len(piece).to_bytes(3, "little") + b"\0" + piece)
        if not more:
            return b"".join(frames)


class Decoder:
    """Bytes in, messages out. Everything before this session's own hello is dropped."""

    def __init__(self, epoch: bytes) -> None:
        self._hello = hello(epoch)
        self._buffer = bytearray()
        self._synced = False
        self._message = bytearray()
        self._kind = 0

    @property
    def synced(self) -> bool:
        """Whether the agent has answered the hello."""
        return self._synced

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """The messages that are complete now.

        Raises:
            GuestError: if the guest sends what is no frame, or more than a message may hold.
        """
        self._buffer += data
        if not self._synced and not self._find_hello():
            return []
        found = []
        while (message := self._next()) is not None:
            found.append(message)
        return found

    def _find_hello(self) -> bool:
        at = self._buffer.find(self._hello)
        if at < 0:
            del self._buffer[: -(len(self._hello) - 1)]
            return False
        del self._buffer[: at + len(self._hello)]
        self._synced = True
        return True

    def _next(self) -> tuple[int, bytes] | None:
        while len(self._buffer) >= HEADER_BYTES:
            kind = self._buffer[0]
            length = int.from_bytes(self._buffer[1:4], "little")
            if kind >= 0x80 or self._buffer[4] != 0 or length > PAYLOAD_MAX:
                raise GuestError(f"The guest's agent sent what is no frame: {bytes(self._buffer[:16]).hex()}.")
            if len(self._buffer) < HEADER_BYTES + length:
                return None
            if self._kind & MORE and (kind & ~MORE) != (self._kind & ~MORE):
                raise GuestError("The guest's agent interleaved two messages.")
            if len(self._message) + length > MESSAGE_MAX:
                raise GuestError(f"The guest's agent sent a message of more than {MESSAGE_MAX} bytes.")
            self._message += self._buffer[HEADER_BYTES : HEADER_BYTES + length]
            del self._buffer[: HEADER_BYTES + length]
            self._kind = kind
            if not kind & MORE:
                payload = bytes(self._message)
                self._message.clear()
                return kind, payload
        return None


def string(text: str) -> bytes:
    """A 16-bit length and UTF-8 bytes.

    Raises:
        ValueError: for NUL, or more than 65,535 bytes.
    """
    raw = text.encode("utf-8", "surrogateescape")
    if b"\0" in raw:
        raise ValueError("a NUL byte cannot be sent")
    if len(raw) > STRING_MAX:
        raise ValueError(f"more than {STRING_MAX} bytes in one string")
    return struct.pack("<H", len(raw)) + raw


def strings(values: list[str]) -> bytes:
    """A 32-bit count and strings."""
    return struct.pack("<I", len(values)) + b"".join(map(string, values))


@dataclass(slots=True)
class Reader:
    """A cursor over a reply's payload; every length is checked."""

    data: bytes
    position: int = 0

    def take(self, count: int) -> bytes:
        piece = self.data[self.position : self.position + count]
        if len(piece) != count:
            raise GuestError("The guest's agent sent a reply that is too short.")
        self.position += count
        return piece

    def integer(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def text(self) -> str:
        return self.take(self.integer(2)).decode("utf-8", "replace")

    @property
    def left(self) -> int:
        return len(self.data) - self.position
