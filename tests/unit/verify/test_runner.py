"""What `ramet verify` refuses before it touches anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from ramet.errors import ConfigError
from ramet.verify import run, run_all_sabotages
from ramet.verify.runner import MEMORY_MIN_MIB


def test_guests_too_small_to_prove_anything_are_refused(tmp_path: Path) -> None:
    """Most of their memory is in use when they have booted: a sound host would fail the check that copies stand out."""
    home = tmp_path / "home"
    with pytest.raises(ConfigError, match="cannot prove anything") as caught:
        run(home, memory_mib=MEMORY_MIN_MIB - 1)
    assert f"{MEMORY_MIN_MIB}M" in str(caught.value)
    with pytest.raises(ConfigError, match="cannot prove anything"):
        run_all_sabotages(home, memory_mib=MEMORY_MIN_MIB - 1)
    assert not home.exists()


def test_a_sabotage_that_there_is_not_is_refused_before_any_is_committed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with pytest.raises(ConfigError, match="There is no sabotage 'nope'"):
        run_all_sabotages(home, names=("reboot", "nope"))
    assert not home.exists()
