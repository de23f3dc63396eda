"""The plugin is found by pytest where the package is installed, and its ladder works in a suite that has nothing of ours."""

from __future__ import annotations

from importlib.metadata import entry_points

import pytest


def test_pytest_finds_the_plugin(pytestconfig: pytest.Config) -> None:
    (found,) = entry_points(group="pytest11", name="ramet")
    assert found.value == "ramet.testing"
    assert pytestconfig.pluginmanager.hasplugin("ramet")
