"""Random sequences of verbs against a model of what each instance must see and what each snapshot must hold (H40, H46)."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.capabilities import requires
from tests.file_systems import WHOLE
from tests.model.sequences import Sequences
from tests.model.stage import build_vmm, play

pytestmark = requires("gcc")
SHM = Path("/dev/shm")
"""There, an fsync costs nothing."""
IN_MEMORY = settings(
    max_examples=2000 if WHOLE else 200,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
ON_DISK = settings(IN_MEMORY, max_examples=100 if WHOLE else 10)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_vmm(tmp_path_factory.mktemp("vmm"))


def run(base: Path, program: Path, how_many: settings) -> None:
    """Sequences in stores under ``base``; the shortest one that fails is printed."""

    class Here(Sequences):
        place = base, program

    run_state_machine_as_test(Here, settings=how_many)


def test_any_sequence_of_verbs_does_what_the_model_says(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch)
    base = SHM if os.access(SHM, os.W_OK) else Path(tempfile.gettempdir())
    run(base, program, IN_MEMORY)


def test_a_few_on_a_real_file_system(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch)
    run(tmp_path, program, ON_DISK)
