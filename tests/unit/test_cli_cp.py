"""cp: which side is in the guest, what a directory means, and that a copy that fails has printed nothing."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ramet.cli import terminal
from ramet.cli.cp import GuestPath, parse_place
from ramet.cli.main import run
from ramet.errors import ConfigError
from ramet.guests.client import GuestRefusedError
from ramet.model import ExecResult
from tests.unit.fake_host import FakeHost, install


class CopyHost(FakeHost):
    """A guest with the directory /data and the file /data/f."""

    content = b"from the guest"

    def __init__(self) -> None:
        super().__init__()
        self.received: dict[str, tuple[bytes, int]] = {}

    def exec(self, _name: str, argv: Sequence[str], **_arguments: Any) -> ExecResult:
        assert tuple(argv[:2]) == ("test", "-d")
        return ExecResult(status=0 if argv[2] == "/data" else 1, signal=None)

    def copy_in(self, _name: str, src: Path, dst: str, *, progress: Callable[[int], None]) -> int:
        if dst.startswith("/nowhere"):
            raise GuestRefusedError(f"In the guest: {dst}: No such file or directory.", errno=errno.ENOENT)
        data = src.read_bytes()
        progress(len(data))
        self.received[dst] = (data, src.stat().st_mode & 0o777)
        return len(data)

    def copy_out(self, _name: str, src: str, dst: Path | int, *, progress: Callable[[int], None]) -> int:
        if src != "/data/f":
            raise GuestRefusedError(f"In the guest: {src}: No such file or directory.", errno=errno.ENOENT)
        if isinstance(dst, int):
            os.write(dst, self.content)
        else:
            dst.write_bytes(self.content)
        progress(len(self.content))
        return len(self.content)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CopyHost:
    host = CopyHost()
    install(monkeypatch, host)
    monkeypatch.chdir(tmp_path)
    return host


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("web:/data/x", GuestPath("web", "/data/x")),
        ("web:/a:b", GuestPath("web", "/a:b")),
        ("./web:/x", "./web:/x"),
        ("/abs:x", "/abs:x"),
        ("file", "file"),
        ("-", "-"),
    ],
)
def test_a_place_in_the_guest_begins_with_a_name(text: str, place: object) -> None:
    assert parse_place(text) == place


@pytest.mark.parametrize("text", ["web:rel", "web:", "a:b", ""])
def test_a_place_that_could_be_either_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_place(text)


@pytest.mark.parametrize("words", [["a", "b"], ["web:/a", "web:/b"], ["/", "web:/data/"], ["-", "web:/data"]])
def test_what_cp_does_not_do_is_refused(host: CopyHost, words: list[str]) -> None:
    assert run(["cp", *words]) == 2
    assert host.received == {}


@pytest.mark.parametrize("words", [["nofile", "web:/nowhere/x"], ["web:/data/f", "nodir/"], ["web:/gone", "."]])
def test_what_is_not_there_is_not_found(host: CopyHost, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "nofile").write_bytes(b"x")
    assert run(["cp", *words]) == 3
    assert host.received == {}


@pytest.mark.parametrize("target", ["web:/data", "web:/data/", "web:/data/f"])
def test_a_directory_takes_the_file_under_its_own_name(
    host: CopyHost, tmp_path: Path, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "f").write_bytes(b"content")
    assert run(["cp", "f", target, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"source": "f", "destination": "web:/data/f", "size_bytes": 7}
    assert host.received["/data/f"][0] == b"content"


@pytest.mark.parametrize("target", [".", "./", "f"])
def test_a_directory_here_does_too(
    host: CopyHost, tmp_path: Path, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["cp", "web:/data/f", target]) == 0
    assert capsys.readouterr().out == "web:/data/f -> f: 14 B\n"
    assert (tmp_path / "f").read_bytes() == host.content


def test_stdin_is_sent_from_where_it_stands_with_the_mode_of_a_new_file(
    host: CopyHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").write_bytes(b"first line\nthe rest")
    fd = os.open(tmp_path / "in", os.O_RDONLY)
    try:
        os.lseek(fd, len(b"first line\n"), os.SEEK_SET)
        monkeypatch.setattr(terminal, "STDIN", fd)
        before = os.umask(0o027)
        assert run(["cp", "-", "web:/data/new"]) == 0
        os.umask(before)
    finally:
        os.close(fd)
    assert host.received["/data/new"] == (b"the rest", 0o640)


def test_to_stdout_the_file_is_all_that_is_printed(host: CopyHost, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert run(["cp", "web:/data/f", "-"]) == 0
    assert capsysbinary.readouterr() == (host.content, b"")
    assert run(["cp", "web:/data/g", "-"]) == 3
    assert capsysbinary.readouterr().out == b""


def test_a_temporary_file_that_cannot_be_made_is_the_hosts_fault(
    host: CopyHost, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    assert run(["cp", "web:/data/f", "-"]) == 9
    assert run(["cp", "-", "web:/data/f"]) == 9
    assert "bug" not in capsys.readouterr().err


def test_a_link_gives_the_file_its_name(host: CopyHost, tmp_path: Path) -> None:
    (tmp_path / "build-7").write_bytes(b"7")
    (tmp_path / "latest").symlink_to("build-7")
    assert run(["cp", "latest", "web:/data/"]) == 0
    assert host.received["/data/latest"][0] == b"7"
