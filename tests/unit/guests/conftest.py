"""The agent of this checkout, compiled once and run natively."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.guests import native_agent
from tests.unit.guests.native_agent import NativeAgent


@pytest.fixture(scope="session")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The agent's program with sanitizers."""
    return native_agent.build_harness(tmp_path_factory.mktemp("agent") / "harness")


@pytest.fixture(scope="module")
def agent(harness: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NativeAgent]:
    """One agent for a file of tests; at its end nothing may have leaked."""
    with native_agent.running_agent(harness, tmp_path_factory.mktemp("root")) as running:
        yield running


@pytest.fixture
def own_agent(harness: Path, tmp_path: Path) -> Iterator[NativeAgent]:
    """An agent for one test."""
    with native_agent.running_agent(harness, tmp_path) as running:
        yield running
