"""Seeds for the fuzzers: ``python -m tests.fuzz.seeds DIRECTORY`` writes each kind of request, and some that are broken."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path

from ramet.guests import wire
from ramet.guests.wire import Request

EPOCH = bytes(range(16))
FLAG_SERIAL, FLAG_SLOW = 0x20, 0x40
HELLO = wire.hello(EPOCH)
IDENTITY = struct.pack("<QQ", 7, 1_700_000_000_000_000_000) + bytes(64) + wire.string("twig") + wire.string("0" * 32)


def exec_request(*argv: str, flags: int = 0, timeout_ms: int = 0) -> bytes:
    """An exec message as the client builds it."""
    payload = struct.pack("<IIHH", flags, timeout_ms, 24, 80) + wire.string("/tmp")
    return wire.encode(Request.EXEC, payload + wire.strings(list(argv)) + wire.strings(["A=b", "PATH=/bin"]))


def streams() -> Iterator[bytes]:
    """What clients send, and what they leave when they are killed."""
    stdin = wire.encode(Request.STDIN, b"some input\n") + wire.encode(Request.STDIN)
    yield HELLO + wire.encode(Request.PING)
    yield HELLO + exec_request("/bin/true") + stdin
    yield (
        HELLO + exec_request("sh", "-c", "true", flags=wire.FLAG_PTY) + wire.encode(Request.RESIZE, b"\1\0\2\0") + stdin
    )
    yield HELLO + exec_request("true", flags=wire.FLAG_DETACH)
    yield HELLO + exec_request("true", flags=wire.FLAG_OUTSIDE)
    yield (
        HELLO + exec_request("put", flags=wire.FLAG_FILES, timeout_ms=1) + wire.encode(Request.SIGNAL, b"\x0f") + stdin
    )
    yield HELLO + wire.encode(Request.QUIESCE, b"\1\0\0\0") + wire.encode(Request.PING) + wire.encode(Request.THAW)
    yield HELLO + wire.encode(Request.IDENTITY, IDENTITY)
    yield HELLO + wire.encode(Request.SHUTDOWN, b"\0")
    yield HELLO + wire.encode(Request.STDIN, wire.MAGIC + b"x" + wire.MAGIC[:3]) + wire.encode(Request.PING)
    yield HELLO + exec_request("half", "a", "frame")[:-9] + HELLO + wire.encode(Request.PING)
    yield b"noise" + wire.MAGIC + b"\x09" + EPOCH + HELLO + b"\x80garbage" + HELLO + wire.encode(0x3F)
    yield HELLO + exec_request("cat") + wire.encode(Request.STDIN, bytes(9000)) * 6


def late_streams() -> Iterator[tuple[bytes, bytes]]:
    """A command, and what comes once it runs."""
    limited = exec_request("cat", timeout_ms=5)
    terminal = exec_request("cat", flags=wire.FLAG_PTY)
    late = (
        wire.encode(Request.SIGNAL, b"\x0f")
        + wire.encode(Request.RESIZE, b"\1\0\2\0")
        + wire.encode(Request.STDIN, b"x\n")
    )
    for start in (exec_request("cat"), limited, terminal):
        yield HELLO + start, late + wire.encode(Request.STDIN) + wire.encode(Request.PING)
        yield HELLO + start, wire.encode(Request.STDIN, bytes(30_000)) * 3
        yield HELLO + start, HELLO + wire.encode(Request.PING)


def write(directory: Path) -> None:
    """Each stream whole and in pieces, on a connection, on a port, and with a client that does not read; see input.h."""
    for flags in (0, FLAG_SERIAL, FLAG_SLOW):
        for number, stream in enumerate(streams()):
            (directory / f"whole-{flags}-{number}").write_bytes(bytes((flags,)) + stream)
            cuts = struct.pack("<4H", 3, 23, 7, 1)
            (directory / f"pieces-{flags}-{number}").write_bytes(bytes((flags | 4,)) + cuts + stream)
        for number, (early, late) in enumerate(late_streams()):
            cuts = struct.pack("<16H", len(early), *[0] * 15)
            (directory / f"late-{flags}-{number}").write_bytes(bytes((flags | 16,)) + cuts + early + late)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
