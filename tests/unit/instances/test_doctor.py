"""What doctor says of confinement."""

from __future__ import annotations

from pathlib import Path

import pytest

from ramet.instances import doctor
from ramet.linux import memory
from ramet.model import MIB
from ramet.paths import StorePaths
from tests.capabilities import requires


@requires("seccomp")
@pytest.mark.parametrize(
    ("limit", "words"), [(None, "memory without a limit"), (300 * MIB, "at most 300 MiB for all in this control group")]
)
def test_it_says_what_limits_vmms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None, words: str
) -> None:
    monkeypatch.setattr(memory, "limit_bytes", lambda: limit)
    (tmp_path / "tmp").mkdir()
    (found,) = [one for one in doctor.examine(StorePaths(home=tmp_path)) if one.name == "confinement"]
    assert "limits of resources" in found.why
    assert found.why.endswith(words)
    assert found.available, "it is no fault of the host's"
