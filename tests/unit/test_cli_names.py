"""Names that cannot be names, in every place where a verb takes one (H46): refused in words, and nothing is touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from ramet.cli.context import HYPERVISORS, MEMORY_POLICIES
from ramet.cli.main import run
from ramet.model import Hypervisor, MemoryPolicy
from ramet.store.layout import open_store

BAD_INPUT, NOT_FOUND = 2, 3
BAD_NAMES = ["", ".", "..", "a/b", "../a", "/etc", "a..b", "a\nb", "a\0b", "-a", "a-", "é", "a b", "x" * 64, "x" * 300]
PLACES = [
    *(
        [verb, "{}"]
        for verb in (
            "create",
            "show",
            "pause",
            "resume",
            "standby",
            "restore",
            "stop",
            "start",
            "rm",
            "logs",
            "console",
        )
    ),
    ["exec", "--", "{}", "true"],
    ["fork", "{}"],
    ["fork", "web", "{}"],
    ["fork", "snapshot:{}"],
    ["snapshot", "create", "{}"],
    ["snapshot", "create", "web", "{}"],
    ["snapshot", "show", "{}"],
    ["snapshot", "rm", "{}"],
    ["image", "rm", "{}"],
    ["create", "web", "--image", "{}"],
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return open_store(tmp_path_factory.mktemp("names") / "home").home


def words(place: list[str], name: str) -> list[str]:
    """``--`` before a name that looks like an option, as a careful user would write it."""
    filled = [word.format(name) for word in place]
    if name.startswith("-") and place[-1] == "{}" and not place[-2].startswith("-"):
        return [*filled[:-1], "--", filled[-1]]
    return filled


@pytest.mark.parametrize("place", PLACES, ids=" ".join)
@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: repr(name[:8]))
def test_a_bad_name_is_refused_in_words(
    home: Path, place: list[str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(home.rglob("*"))
    assert run(["--home", str(home), *words(place, name)]) == BAD_INPUT
    said = capsys.readouterr().err
    first, *_ = said.splitlines()
    assert first.startswith("ramet: error: ")
    assert "\n" in said
    assert len(first) < 200, "a long name is shortened"
    assert first.isprintable(), "control characters are escaped"
    assert sorted(home.rglob("*")) == before


@pytest.mark.parametrize("place", [place for place in PLACES if place[0] not in ("create",)], ids=" ".join)
def test_an_unknown_name_is_not_found(home: Path, place: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(home.rglob("*"))
    assert run(["--home", str(home), *words(place, "nosuch")]) == NOT_FOUND
    said = capsys.readouterr().err
    assert said.startswith("ramet: error: There is no ")
    assert "ramet " in said.splitlines()[1], "it says what to do"
    assert sorted(home.rglob("*")) == before


def test_what_can_be_chosen_is_what_there_is() -> None:
    """They are spelled out: nothing else of the model is loaded for ``--help``."""
    assert list(HYPERVISORS.choices) == [one.value for one in Hypervisor]
    assert list(MEMORY_POLICIES.choices) == [one.value for one in MemoryPolicy]
