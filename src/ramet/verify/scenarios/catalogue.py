"""All scenarios, in the order in which they are run."""

from __future__ import annotations

from collections.abc import Sequence

from ramet import spelling
from ramet.verify.scenarios import (
    base,
    chain,
    draws,
    flight,
    live,
    pool,
    reverse,
    rewind,
    siblings,
    sleeps,
    swapped,
    together,
)
from ramet.verify.scenarios.scenario import Scenario

SCENARIOS: dict[str, Scenario] = {
    one.SCENARIO.name: one.SCENARIO
    for one in (base, reverse, siblings, pool, chain, live, rewind, sleeps, swapped, together, flight, draws)
}


def named(names: Sequence[str]) -> list[Scenario]:
    """The scenarios with these names, or all; in their own order.

    Raises:
        ConfigError: if there is none of a name.
    """
    return spelling.named(SCENARIOS, names, what="scenario", listed_by="ramet verify --list")
