"""What is done in a guest for who asks by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest

from ramet.errors import SEE_CONSOLE, GuestTimeoutError
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


def test_a_hint_about_a_guest_names_its_instance(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.change(state=State.RUNNING)
    monkeypatch.setattr(observe, "look", lambda _store, record: record)

    def never_answers(*_arguments: object) -> NoReturn:
        raise GuestTimeoutError("It has fallen silent.", hint=SEE_CONSOLE)

    monkeypatch.setattr(AgentClient, "open", never_answers)
    with pytest.raises(GuestTimeoutError) as caught, commands.agent_of(place.store, "web", Verb.EXEC):
        pass
    assert caught.value.hint == "`ramet logs web` shows the guest's console."
