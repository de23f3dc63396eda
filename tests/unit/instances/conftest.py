"""A store to break."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ramet.hypervisors.qemu.driver import QemuDriver
from ramet.instances import guest
from ramet.model import VmmProcess
from tests.unit.instances.parked import Guests, start_vmm
from tests.unit.instances.place import Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "home")


@pytest.fixture
def vmms() -> Iterator[Callable[[], VmmProcess]]:
    """Starts processes that stand for VMMs."""
    made: list[subprocess.Popen[bytes]] = []
    yield lambda: start_vmm(made)
    for child in made:
        child.kill()
        child.wait()


@pytest.fixture
def alive(vmms: Callable[[], VmmProcess]) -> VmmProcess:
    """One of them."""
    return vmms()


@pytest.fixture
def guests(monkeypatch: pytest.MonkeyPatch) -> Guests:
    """Guests that answer as they are told, in the place of QEMU's."""
    made = Guests()
    monkeypatch.setattr(QemuDriver, "connect", lambda driver, run_dir: made.connect(driver, run_dir))
    monkeypatch.setattr(guest, "identified", made.identified)
    return made
