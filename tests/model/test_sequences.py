"""Random sequences of verbs against a model of what each instance must see and what each snapshot must hold (H40, H46)."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.capabilities import requires
from tests.file_systems import WHOLE
from tests.model.faults import Sequences

pytestmark = requires("gcc")
IN_MEMORY = settings(
    max_examples=2000 if WHOLE else 80,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
ON_DISK = settings(IN_MEMORY, max_examples=100 if WHOLE else 10)


def run(base: Path, program: Path, how_many: settings) -> None:
    """Sequences in stores under ``base``; the shortest one that fails is printed."""

    class Here(Sequences):
        place = base, program

    run_state_machine_as_test(Here, settings=how_many)


@pytest.mark.timeout(3600)
def test_any_sequence_of_verbs_does_what_the_model_says(program: Path, in_memory: Path, played: None) -> None:
    run(in_memory, program, IN_MEMORY)


def test_a_few_on_a_real_file_system(program: Path, tmp_path: Path, played: None) -> None:
    run(tmp_path, program, ON_DISK)
