"""Capabilities of this process, as /proc tells them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ramet.linux import capabilities


def test_all_that_are_asked_for_must_be_in_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    usual_in_a_container = "00000000a80425fb"
    monkeypatch.setattr(Path, "read_text", lambda _path: f"Name:\tx\nCapEff:\t{usual_in_a_container}\n")
    assert capabilities.in_effect(capabilities.CAP_CHOWN, capabilities.CAP_KILL)
    assert not capabilities.in_effect(capabilities.CAP_CHOWN, capabilities.CAP_SYS_PTRACE)
    assert not capabilities.in_effect(capabilities.CAP_SYS_NICE)
