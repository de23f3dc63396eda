"""The shell on the serial console of libvirt's guest, played by the other end of a socket."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from ramet.bench.libvirt import Console
from ramet.errors import GuestError, GuestTimeoutError

ASKED = re.compile(rb"echo ([0-9a-f]{4})''([0-9a-f]{4})-\$\?\n")


@contextmanager
def shell(answer: Callable[[bytes, bytes], bytes]) -> Iterator[Console]:
    """A console whose other end answers all that is typed: ``answer`` gets it, and the token that is asked for."""
    ours, theirs = socket.socketpair()

    def play() -> None:
        while data := theirs.recv(65536):
            asked = ASKED.search(data)
            assert asked is not None
            theirs.sendall(answer(data, asked[1] + asked[2]))
        theirs.close()

    thread = threading.Thread(target=play)
    thread.start()
    with Console(ours) as console:
        yield console
    thread.join()


def test_a_command_has_ended_when_its_status_is_printed() -> None:
    with shell(lambda typed, token: typed + b"# \r\n" + token + b"-0\r\n# ") as console:
        console.run("true", 5)
        console.run("ramet-fill /ram/fill 1 1", 5)


def test_a_command_that_fails_is_an_error() -> None:
    with (
        shell(lambda typed, token: typed + token + b"-3\r\n") as console,
        pytest.raises(GuestError, match="status 3"),
    ):
        console.run("false", 5)


def test_what_merely_repeats_what_was_typed_is_no_answer() -> None:
    """Neither the echo, nor a shell that complains of a line which has lost its beginning."""
    with (
        shell(lambda typed, token: typed + b"-sh: " + token + b"-0: not found\r\n") as console,
        pytest.raises(GuestTimeoutError, match=r"within 0\.1 s"),
    ):
        console.run("true", 0.1)


def test_a_shell_that_does_not_hear_yet_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ramet.bench.libvirt.ASK_AGAIN_S", 0.01)
    asked = 0

    def answer(typed: bytes, token: bytes) -> bytes:
        nonlocal asked
        asked += 1
        return typed if asked < 3 else b"\r\n" + token + b"-127\r\n"

    with shell(answer) as console:
        console.wait_for_shell(5)
    assert asked >= 3


def test_a_console_that_is_closed_is_an_error() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with Console(ours) as console, pytest.raises(GuestError, match="was closed"):
        console.run("true", 5)
