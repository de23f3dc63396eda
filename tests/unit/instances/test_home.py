"""Where a store is made, and where not."""

from __future__ import annotations

from pathlib import Path

import pytest

from ramet import config
from ramet.cli.main import run
from ramet.errors import ConfigError
from ramet.instances.context import Store


def test_a_place_that_is_named_has_a_parent_already(tmp_path: Path) -> None:
    home = tmp_path / "deep" / "er" / "home"
    with pytest.raises(ConfigError, match=f"There is no directory {home.parent} for the store '{home}'") as found:
        Store(home)
    assert f"mkdir -p {tmp_path}/deep/er" in (found.value.hint or "")
    assert list(tmp_path.iterdir()) == []
    assert Store(tmp_path / "home").paths.tmp.is_dir()


def test_so_has_one_that_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAMET_HOME", str(tmp_path / "deep" / "home"))
    with pytest.raises(ConfigError, match="There is no directory"):
        Store()
    assert run(["--home", str(tmp_path / "other" / "home"), "ls"]) == 2
    assert f"There is no directory {tmp_path}/other" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_place_of_those_who_name_none_is_made_with_all_above_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "home" / "state" / "ramet"
    monkeypatch.delenv("RAMET_HOME", raising=False)
    monkeypatch.setattr(config, "unnamed_home", lambda: place)
    assert Store().paths.home == place
    assert Store(place).paths.tmp.is_dir()
