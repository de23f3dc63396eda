"""What a scenario is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ramet.verify.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A scenario before it is run."""

    name: str
    summary: str
    claims: tuple[str, ...]
    run: Callable[[World], None]
