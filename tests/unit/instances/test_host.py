"""What the library refuses before it looks at the store."""

from __future__ import annotations

from pathlib import Path

import pytest

from ramet import Host
from ramet.errors import ConfigError, NotFoundError
from ramet.store import names
from tests.unit.instances.place import Place


def test_a_command_is_a_list_of_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a string, not a list"):
        Host(tmp_path / "home").exec("web", "uname -a")


def test_one_name_for_a_fork_is_one_name(tmp_path: Path) -> None:
    """Not one for each of its letters: as such a list it would be refused, for "n" in it twice."""
    with pytest.raises(NotFoundError, match="'web'"):
        Host(tmp_path / "home").fork("web", "inn")
    with pytest.raises(ConfigError, match="'-a'"):
        Host(tmp_path / "home").fork("web", "-a")


def test_a_name_that_there_is_none_of_is_answered_with_what_is_spelled_like_it(tmp_path: Path) -> None:
    place = Place(tmp_path / "home")
    names.claim(place.store.paths.snapshot_names, "golden", place.snapshot_id, what="snapshot")
    tags = place.store.paths.images / "tags"
    tags.mkdir()
    (tags / "micro").write_text("0" * 32)
    names.claim(place.store.paths.instance_names, "lost", "3" * 12, what="instance")
    (tags / "losing").write_text("1" * 32)
    host = Host(tmp_path / "home")
    for ask, hint in (
        (lambda: host.get("wbe"), "Did you mean 'web'? `ramet ls` lists them."),
        (lambda: host.get("lost"), "`ramet ls` lists them."),
        (lambda: host.create("new", image="losing"), "Build it: ramet image build"),
        (lambda: host.get("nothing-like-it"), "`ramet ls` lists them."),
        (lambda: host.get("golden"), "There is a snapshot of that name: write snapshot:golden."),
        (lambda: host.snapshot_get("goldn"), "Did you mean 'golden'? `ramet snapshot ls` lists them."),
        (lambda: host.fork("snapshot:goldn"), "Did you mean 'golden'? `ramet snapshot ls` lists them."),
        (lambda: host.create("new", image="micor"), "Did you mean 'micro'?"),
        (lambda: host.create("new", image="debian"), "Build it: ramet image build"),
    ):
        with pytest.raises(NotFoundError) as caught:
            ask()
        assert caught.value.hint == hint
