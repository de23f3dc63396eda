"""The agent's wire protocol: frames, messages and the hello (drawn in agent/README.md). Pure functions over bytes."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NoReturn

from ramet.errors import GuestError

MAGIC: Final = bytes((0xF5, 0xD2, 0xC1, 0xCD, 0xC5, 0xD4, 0xFA, 0xAF))
PROTOCOL_VERSION: Final = 1
EPOCH_BYTES: Final = 16
HELLO_BYTES: Final = len(MAGIC) + 1 + EPOCH_BYTES
HEADER_BYTES: Final = 5
PAYLOAD_MAX: Final = 65536
MESSAGE_MAX: Final = 1024 * 1024
STDIN_WINDOW: Final = 256 * 1024
MORE: Final = 0x40
STRING_MAX: Final = 65535
FLAG_PTY, FLAG_DETACH, FLAG_FILES, FLAG_OUTSIDE = 1, 2, 4, 8
_BEGUN: Final = tuple(MAGIC[:length] for length in range(1, len(MAGIC)))


class Request(IntEnum):
    """What the host asks for."""

    PING = 1
    EXEC = 2
    STDIN = 3
    SIGNAL = 4
    RESIZE = 5
    QUIESCE = 6
    THAW = 7
    IDENTITY = 8
    SHUTDOWN = 9


class Reply(IntEnum):
    """What the agent answers."""

    OK = 0x20
    ERROR = 0x21
    STARTED = 0x22
    STDOUT = 0x23
    STDERR = 0x24
    WINDOW = 0x25
    EXIT = 0x26


class GuestRefusedError(GuestError):
    """The agent answered with an error of the guest's kernel; ``errno`` is the guest's."""

    code = "guest-refused"

    def __init__(self, message: str, *, errno: int) -> None:
        super().__init__(message)
        self.errno = errno


def hello(epoch: bytes) -> bytes:
    """What opens a session, in both directions. Its layout is the same in every version of the protocol."""
    return MAGIC + bytes((PROTOCOL_VERSION,)) + epoch


def encode(kind: int, payload: bytes = b"") -> bytes:
    """One message as frames, none of which holds the magic, or ends where a hello could begin."""
    frames = []
    position = 0
    while True:
        piece = payload[position : position + PAYLOAD_MAX]
        found = piece.find(MAGIC)
        if found >= 0:
            piece = piece[: found + len(MAGIC) // 2]
        position += len(piece)
        more = position < len(payload) or piece.endswith(_BEGUN)
        frames.append(bytes((kind | MORE if more else kind,)) + len(piece).to_bytes(3, "little") + b"\0" + piece)
        if not more:
            return b"".join(frames)


class Decoder:
    """Bytes in, messages out. Everything before the answer to this session's own hello is dropped."""

    def __init__(self, epoch: bytes) -> None:
        self._epoch = epoch
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
            GuestError: if the guest sends what is no frame, or more than a message may hold, or speaks another version.
        """
        self._buffer += data
        if not self._synced and not self._find_hello():
            return []
        found = []
        while (message := self._next()) is not None:
            found.append(message)
        return found

    def _find_hello(self) -> bool:
        while (at := self._buffer.find(MAGIC)) >= 0:
            del self._buffer[:at]
            if len(self._buffer) < HELLO_BYTES:
                return False
            if self._buffer[HELLO_BYTES - EPOCH_BYTES : HELLO_BYTES] == self._epoch:
                version = self._buffer[len(MAGIC)]
                if version != PROTOCOL_VERSION:
                    raise GuestError(
                        f"The guest's agent speaks version {version} of the protocol, this Ramet version "
                        f"{PROTOCOL_VERSION}.",
                        hint="Use the Ramet that built the guest's image, or build an image anew: ramet image build",
                    )
                del self._buffer[:HELLO_BYTES]
                self._synced = True
                return True
            del self._buffer[: len(MAGIC)]
        del self._buffer[: -(len(MAGIC) - 1)]
        return False

    def _next(self) -> tuple[int, bytes] | None:
        while len(self._buffer) >= HEADER_BYTES:
            kind = self._buffer[0]
            length = int.from_bytes(self._buffer[1:4], "little")
            if kind >= 0x80 or self._buffer[4] != 0 or length > PAYLOAD_MAX:
                raise GuestError(f"The guest's agent sent what is no frame: {bytes(self._buffer[:16]).hex()}.")
            if self._kind & MORE and (kind & ~MORE) != (self._kind & ~MORE):
                raise GuestError("The guest's agent interleaved two messages.")
            if len(self._message) + length > MESSAGE_MAX:
                raise GuestError(f"The guest's agent sent a message of more than {MESSAGE_MAX} bytes.")
            if len(self._buffer) < HEADER_BYTES + length:
                return None
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


def printable(raw: bytes, *, limit: int = 400) -> str:
    """What a guest says, fit to be shown: no control characters that a terminal would obey, and not endless."""
    text = raw[: 4 * limit].decode("utf-8", "replace")
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown if len(shown) <= limit else shown[:limit] + "…"


def refuse(payload: bytes) -> NoReturn:
    """Raise what an ERROR reply says.

    Raises:
        GuestRefusedError: always, unless the reply is none.
    """
    reader = Reader(payload)
    number = reader.integer(4)
    raise GuestRefusedError(f"In the guest: {reader.text()}.", errno=number)


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
        """A string, made printable."""
        return printable(self.take(self.integer(2)))

    @property
    def left(self) -> int:
        return len(self.data) - self.position
