"""Names that somebody may have meant."""

from __future__ import annotations

import pytest

from ramet import spelling
from ramet.cli.main import run
from ramet.errors import ConfigError
from ramet.spelling import did_you_mean


def test_the_nearest_come_first() -> None:
    assert did_you_mean("forks", ["fork", "for", "create"]) == "Did you mean 'fork' or 'for'?"


def test_of_what_is_like_nothing_nothing_is_said() -> None:
    assert did_you_mean("xyzzy", ["fork", "create"]) == ""


def test_a_verb_that_is_misspelled(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["standbye"]) == 2
    assert "There is no verb 'standbye'. Did you mean 'standby'?" in capsys.readouterr().err
    assert run(["xyzzy"]) == 2
    assert "There is no verb 'xyzzy'.\n" in capsys.readouterr().err


def test_names_mean_what_they_name_in_its_own_order() -> None:
    known = {"fork": 1, "restore": 2, "save": 3}
    assert spelling.named(known, ["save", "fork"], what="benchmark", listed_by="ramet bench --list") == [1, 3]
    assert spelling.named(known, [], what="benchmark", listed_by="ramet bench --list") == [1, 2, 3]
    with pytest.raises(ConfigError, match="There is no benchmark 'frok'") as caught:
        spelling.named(known, ["save", "frok"], what="benchmark", listed_by="ramet bench --list")
    assert caught.value.hint == "Did you mean 'fork'? `ramet bench --list` lists them."


def test_a_long_list_is_cut_and_says_so() -> None:
    words = [f"fork {number}" for number in range(spelling.SAID_MAX + 2)]
    assert spelling.in_short(words[:2]) == "fork 0; fork 1"
    assert spelling.in_short(words[:-1]).endswith("fork 6"), "one more is said as fast as that there is one"
    assert spelling.in_short(words) == "fork 0; fork 1; fork 2; fork 3; fork 4; fork 5; and 2 more"
