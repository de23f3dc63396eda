"""Random sequences of verbs over real guests: a few in every run, since a boot takes seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.capabilities import requires
from tests.file_systems import WHOLE
from tests.model.guests import GuestSequences

FEW = settings(
    max_examples=40 if WHOLE else 4,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=tuple(Phase) if WHOLE else (Phase.generate,),  # to shorten a sequence takes many more
    print_blob=True,
)


@requires("qemu")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("file_system", ["xfs"], indirect=True)
def test_a_few_sequences_over_real_guests(file_system: Path) -> None:
    class Here(GuestSequences):
        place = file_system

    run_state_machine_as_test(Here, settings=FEW)
