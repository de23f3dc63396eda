"""exec: which words are whose, what the status is, and what signals do."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import pytest

from ramet.cli import exec as exec_verb
from ramet.cli.main import run
from ramet.errors import InterruptedByUserError
from ramet.guests.client import GuestRefusedError
from ramet.guests.exec_session import ExecControl
from ramet.guests.wire import Request
from ramet.model import ExecResult
from tests.unit.fake_host import FakeHost, install


class ExecHost(FakeHost):
    """Runs what it is told to: answers with ``result``, or raises it."""

    def __init__(self) -> None:
        super().__init__()
        self.result: ExecResult | Exception = ExecResult(status=0, signal=None)
        self.asked: dict[str, Any] = {}

    def exec(self, name: str, argv: Sequence[str], **arguments: Any) -> ExecResult:
        self.asked = {"name": name, "argv": tuple(argv), **arguments}
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> ExecHost:
    host = ExecHost()
    install(monkeypatch, host)
    return host


@pytest.mark.parametrize(
    ("words", "argv"),
    [
        (["web", "ls"], ("ls",)),
        (["web", "ls", "-t", "--json"], ("ls", "-t", "--json")),
        (["web", "--", "ls", "-l"], ("ls", "-l")),
        (["-e", "A=b", "web", "env"], ("env",)),
        (["web", "-e", "A=b", "env", "-e"], ("env", "-e")),
        (["web", "-e", "A=b", "--", "env", "--help"], ("env", "--help")),
        (["--", "web", "-e", "x"], ("-e", "x")),
        (["web", "--", "--", "x"], ("--", "x")),
        (["--workdir", "/data", "web", "sh", "-c", "ls -w"], ("sh", "-c", "ls -w")),
    ],
)
def test_options_end_at_the_first_word_of_the_guest(host: ExecHost, words: list[str], argv: tuple[str, ...]) -> None:
    assert run(["exec", *words]) == 0
    assert (host.asked["name"], host.asked["argv"]) == ("web", argv)


def test_options_reach_the_host(host: ExecHost) -> None:
    words = ["-e", "A=1", "-e", "A=2", "-e", "B=c=d", "-w", "/data", "--timeout", "2.5"]
    assert run(["exec", "web", *words, "--", "x"]) == 0
    assert host.asked["env"] == {"A": "2", "B": "c=d"}
    assert (host.asked["cwd"], host.asked["timeout_s"], host.asked["pty"]) == ("/data", 2.5, None)


@pytest.mark.parametrize("words", [["-e", "A"], ["-e", "=b"], ["--timeout", "0"], ["-d", "-t"], ["-d", "-i"]])
def test_what_cannot_be_meant_is_refused_before_the_host_is_asked(host: ExecHost, words: list[str]) -> None:
    assert run(["exec", *words, "web", "x"]) == 2
    assert host.asked == {}


@pytest.mark.parametrize("words", [[], ["web"], ["web", "--"], ["-t", "web"]])
def test_a_command_is_needed(host: ExecHost, words: list[str]) -> None:
    assert run(["exec", *words]) == 2
    assert host.asked == {}


@pytest.mark.parametrize(
    ("result", "status"),
    [
        (ExecResult(status=7, signal=None), 7),
        (ExecResult(status=None, signal=9), 137),
        (ExecResult(status=None, signal=15, timed_out=True), 124),
        (GuestRefusedError("In the guest: x: No such file or directory.", errno=errno.ENOENT), 127),
        (GuestRefusedError("In the guest: x: Permission denied.", errno=errno.EACCES), 126),
        (GuestRefusedError("In the guest: x: Exec format error.", errno=errno.ENOEXEC), 126),
    ],
)
@pytest.mark.parametrize("detached", [[], ["-d"]])
def test_the_status_is_what_a_shell_gives(
    host: ExecHost, result: ExecResult | Exception, status: int, detached: list[str]
) -> None:
    host.result = result
    expected = 0 if detached and isinstance(result, ExecResult) else status
    assert run(["exec", *detached, "--timeout", "1", "web", "x"]) == expected


def test_signals_are_handed_on_and_the_third_one_that_ends_gives_up() -> None:
    numbers = (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    handed_on = []

    def session(control: ExecControl) -> None:
        with exec_verb.forwarding(control, resizes=False):
            for number in numbers:
                os.kill(os.getpid(), number)
            handed_on.extend(control.take())
            os.kill(os.getpid(), signal.SIGHUP)

    with closing(ExecControl()) as control, pytest.raises(InterruptedByUserError, match="after 3 signals"):
        session(control)
    assert [(kind, payload[0]) for kind, payload in handed_on] == [(Request.SIGNAL, number) for number in numbers]


def test_the_handlers_are_put_back_and_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with closing(ExecControl()) as control, exec_verb.forwarding(control, resizes=True):
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGINT) != signal.default_int_handler
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    assert signal.getsignal(signal.SIGWINCH) == signal.SIG_DFL
