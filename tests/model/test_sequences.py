"""Random sequences of verbs against a model of what each instance must see and what each snapshot must hold (H40, H46)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.capabilities import requires
from tests.file_systems import WHOLE
from tests.model.sequences import run
from tests.style.sources import ROOT

pytestmark = requires("gcc")


@pytest.mark.timeout(3600)
def test_any_sequence_of_verbs_does_what_the_model_says(program: Path, in_memory: Path, played: None) -> None:
    run(in_memory, program, sequences=400 if WHOLE else 80, steps=25)


def test_a_few_on_a_real_file_system(program: Path, tmp_path: Path, played: None) -> None:
    run(tmp_path, program, sequences=100 if WHOLE else 10, steps=25)


@pytest.mark.skipif(not WHOLE, reason="in make test-all")
@pytest.mark.timeout(600)
def test_two_thousand_sequences() -> None:
    done = subprocess.run([sys.executable, "-m", "tests.model"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("passed: 2000 sequences")
