"""All scenarios, in the order in which they are run."""

from __future__ import annotations

from collections.abc import Sequence

from ramet.errors import ConfigError
from ramet.spelling import did_you_mean
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
    unknown = [name for name in names if name not in SCENARIOS]
    if unknown:
        hint = f"{did_you_mean(unknown[0], SCENARIOS)} `ramet verify --list` lists them.".lstrip()
        raise ConfigError(f"There is no scenario {unknown[0]!r}.", hint=hint)
    return [scenario for name, scenario in SCENARIOS.items() if not names or name in names]
