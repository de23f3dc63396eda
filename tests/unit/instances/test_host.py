"""What the library refuses before it looks at the store."""

from __future__ import annotations

from pathlib import Path

import pytest

from ramet import Host
from ramet.errors import ConfigError, NotFoundError


def test_a_command_is_a_list_of_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a string, not a list"):
        Host(tmp_path / "home").exec("web", "uname -a")


def test_one_name_for_a_fork_is_one_name(tmp_path: Path) -> None:
    """Not one for each of its letters: as such a list it would be refused, for "n" in it twice."""
    with pytest.raises(NotFoundError, match="'web'"):
        Host(tmp_path / "home").fork("web", "inn")
    with pytest.raises(ConfigError, match="'-a'"):
        Host(tmp_path / "home").fork("web", "-a")
