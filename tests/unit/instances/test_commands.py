"""What is done in a guest for who asks by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest

from ramet.errors import SEE_CONSOLE, ConfigError, GuestTimeoutError, HostError, NotFoundError
from ramet.guests.client import AgentClient
from ramet.guests.transfer import FileMeta
from ramet.instances import commands, observe
from ramet.model import State
from ramet.states import Verb
from tests.unit.instances.place import Place


@contextmanager
def answering(agent: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    @contextmanager
    def agent_of(*_arguments: object) -> Iterator[SimpleNamespace]:
        yield agent

    with monkeypatch.context() as patch:
        patch.setattr(commands, "agent_of", agent_of)
        yield


def test_a_copy_is_told_of_and_goes_to_a_path_or_a_descriptor(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(_src: str, fd: int, *, progress: Callable[[int], None]) -> FileMeta:
        os.write(fd, b"content")
        progress(7)
        return FileMeta(size_bytes=7, mode=0o751)

    def put(fd: int, _dst: str, *, mode: int, progress: Callable[[int], None]) -> int:
        progress(len(os.read(fd, 100)))
        return mode

    told: list[int] = []
    file = tmp_path / "file"
    with answering(SimpleNamespace(get=get, put=put), monkeypatch):
        assert commands.copy_out(place.store, "web", "/data/file", file, progress=told.append) == 7
        assert (file.read_bytes(), file.stat().st_mode & 0o777) == (b"content", 0o751)
        with (tmp_path / "other").open("wb") as other:
            assert commands.copy_out(place.store, "web", "/data/file", other.fileno(), progress=told.append) == 7
        assert (tmp_path / "other").read_bytes() == b"content"
        assert commands.copy_in(place.store, "web", file, "/data/file", progress=told.append) == 0o751
    assert told == [7, 7, 7]


def test_a_copy_replaces_files_alone_and_follows_links(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root's `cp web:/f /dev/null` would have put a file in the device's place."""

    def get(_src: str, fd: int, **_progress: object) -> FileMeta:
        os.write(fd, b"content")
        return FileMeta(size_bytes=7, mode=0o777)

    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("new")
    (tmp_path / "lost").symlink_to("nowhere/new")
    (tmp_path / "circle").symlink_to("circle")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "to-fifo").symlink_to("fifo")
    before = os.umask(0o022)
    try:
        with answering(SimpleNamespace(get=get), monkeypatch):
            for refused in (tmp_path / "fifo", tmp_path / "to-fifo", tmp_path, Path("/dev/null")):
                with pytest.raises(ConfigError, match=f"{refused} is (no regular file|a directory)"):
                    commands.copy_out(place.store, "web", "/f", refused)
            with pytest.raises(HostError, match="Too many levels"):
                commands.copy_out(place.store, "web", "/f", tmp_path / "circle")
            with pytest.raises(NotFoundError, match="no directory"):
                commands.copy_out(place.store, "web", "/f", tmp_path / "lost")
            for target in ("link", "dangling"):
                assert commands.copy_out(place.store, "web", "/f", tmp_path / target) == 7
    finally:
        os.umask(before)
    assert Path("/dev/null").is_char_device()
    assert (tmp_path / "fifo").is_fifo()
    for target, file in (("link", "file"), ("dangling", "new")):
        assert (tmp_path / target).is_symlink()
        assert (tmp_path / file).read_bytes() == b"content"
        assert (tmp_path / file).stat().st_mode & 0o777 == 0o755, "the guest's mode, less our umask"


def test_a_hint_about_a_guest_names_its_instance(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.change(state=State.RUNNING)
    monkeypatch.setattr(observe, "look", lambda _store, record: record)

    def never_answers(*_arguments: object) -> NoReturn:
        raise GuestTimeoutError("It has fallen silent.", hint=SEE_CONSOLE)

    monkeypatch.setattr(AgentClient, "open", never_answers)
    with pytest.raises(GuestTimeoutError) as caught, commands.agent_of(place.store, "web", Verb.EXEC):
        pass
    assert caught.value.hint == "`ramet logs web` shows the guest's console."
