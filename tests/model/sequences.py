"""How sequences over played VMs are run."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.faults import Sequences

SHM = Path("/dev/shm")


@contextmanager
def stores_in_memory() -> Iterator[Path]:
    """A directory on a tmpfs, where an fsync costs nothing, if the host has one that we may write to."""
    base = SHM if os.access(SHM, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="ramet-model-", dir=base) as directory:
        yield Path(directory)


def run(base: Path, program: Path, *, sequences: int, steps: int, number: int | None = None) -> None:
    """Sequences in stores under ``base``; the shortest one that fails is printed. A ``number`` makes them the same each time."""

    class Here(Sequences):
        place = base, program

    how_many = settings(
        max_examples=sequences,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None if number is not None else settings().database,
    )
    run_state_machine_as_test(Here if number is None else seed(number)(Here), settings=how_many)
