"""Fixtures of the tests that need KVM."""

from __future__ import annotations

from pathlib import Path

import pytest

from ramet.model import Hypervisor
from tests import kept as kept_guests
from tests.kept import Kept

SMALL_MIB = 128


@pytest.fixture(scope="session")
def kept(store_home: Path) -> Kept:
    """A Firecracker guest that has booted and sleeps, beside the store."""
    return kept_guests.keep(store_home.parent / "kept", memory_mib=SMALL_MIB, hypervisor=Hypervisor.FIRECRACKER)
