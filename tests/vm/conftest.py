"""Fixtures of the tests that start guests through the command line."""

from __future__ import annotations

import pytest

from ramet import Host
from tests.vm.command_line import CommandLine


@pytest.fixture
def command(host: Host) -> CommandLine:
    return CommandLine(host.home)
