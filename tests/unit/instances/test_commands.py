"""What is done in a guest for who asks by name."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest

from ramet.errors import SEE_CONSOLE, GuestTimeoutError
from ramet.guests.client import AgentClient
from ramet.instances import commands, observe
from ramet.model import State
from ramet.states import Verb
from tests.unit.children import own_descriptors
from tests.unit.instances.place import Place


def test_an_interruption_just_as_the_temporary_file_of_a_copy_is_made_leaves_nothing(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = tmp_path / "destination"
    destination.mkdir()
    real: Callable[..., tuple[int, str]] = tempfile.mkstemp
    made: list[str] = []

    def mkstemp(**where: str) -> tuple[int, str]:
        handle, name = real(**where)
        made.append(name)
        os.kill(os.getpid(), signal.SIGINT)
        return handle, name

    @contextmanager
    def agent_of(*_arguments: object) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace()

    monkeypatch.setattr(commands, "agent_of", agent_of)
    monkeypatch.setattr(tempfile, "mkstemp", mkstemp)
    before = own_descriptors()
    with pytest.raises(KeyboardInterrupt):
        commands.copy_out(place.store, "web", "/data/file", destination / "file")
    assert made
    assert list(destination.iterdir()) == []
    assert own_descriptors() == before


def test_a_hint_about_a_guest_names_its_instance(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.change(state=State.RUNNING)
    monkeypatch.setattr(observe, "look", lambda _store, record: record)

    def never_answers(*_arguments: object) -> NoReturn:
        raise GuestTimeoutError("It has fallen silent.", hint=SEE_CONSOLE)

    monkeypatch.setattr(AgentClient, "open", never_answers)
    with pytest.raises(GuestTimeoutError) as caught, commands.agent_of(place.store, "web", Verb.EXEC):
        pass
    assert caught.value.hint == "`ramet logs web` shows the guest's console."
