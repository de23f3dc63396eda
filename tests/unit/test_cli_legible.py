"""What of a guest's console reaches our terminal."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.cli.legible import COLOUR, Legible
from ramet.cli.main import run
from tests.unit.fake_host import FakeHost, install

STEERING = {
    "where is the cursor": b"\x1b[6n",
    "what are you": b"\x1b[c\x1b[>0q\x05",
    "move": b"\x1b[2J\x1b[1;1H\x1b[?25l\x1b7\x1b8\x1bM",
    "a title": b"\x1b]0;owned\x07\x1b]2;owned\x1b\\",
    "the clipboard": b"\x1b]52;c;b3duZWQ=\x07",
    "a setting's value": b"\x1bP+q544e\x1b\\\x1bP$qm\x1b\\",
    "eight bits": "\x9b6n\x9d0;owned\x9c\x90$qm\x9c".encode(),
    "another character set": b"\x1b(0\x0e\x0f",
    "bell and back": b"\x07\x08\x7f\x0b\x0c\x00",
}


def shown(*pieces: bytes) -> str:
    legible = Legible()
    return "".join(legible.piece(data) for data in pieces)


@pytest.mark.parametrize("what", STEERING)
def test_nothing_steers_the_terminal(what: str) -> None:
    data = b"before " + STEERING[what] + b"after\n"
    assert shown(data) == "before after\n"
    assert shown(*(bytes([byte]) for byte in data)) == "before after\n", "wherever it is cut in two"


def test_text_line_ends_tabs_and_colours_stay() -> None:
    assert shown("a\tü ✓\r\r\nb\r\n".encode(), b"c\rd\xff\n") == "a\tü ✓\nb\nc\nd\N{REPLACEMENT CHARACTER}\n"
    assert shown(b"\x1b[1;32mok\x1b[", b"0m\n") == "\x1b[1;32mok\x1b[0m\n"


def test_a_string_that_does_not_end_swallows_one_line_at_most() -> None:
    assert shown(b"a\x1b]0;title\nb\n") == "a\nb\n"


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_whatever_is_written_only_colours_are_left(pieces: list[bytes]) -> None:
    left = COLOUR.sub("", shown(*pieces))
    assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 for c in left if c not in "\n\t")


@pytest.mark.parametrize(("on_terminal", "words"), [(False, []), (True, ["--raw"]), (True, [])])
def test_logs_are_legible_on_a_terminal_alone(
    on_terminal: bool,
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    host: FakeHost = install(monkeypatch)
    host.log_path = tmp_path / "console.log"
    host.log_path.write_bytes(b"\x1b[6n\x1b[31mboot\r\n")
    monkeypatch.setattr("ramet.cli.output.on_terminal", lambda: on_terminal)
    assert run(["logs", "web", *words]) == 0
    as_it_is = not on_terminal or bool(words)
    assert capsysbinary.readouterr().out == (host.log_path.read_bytes() if as_it_is else b"\x1b[31mboot\n\x1b[0m")
