"""The scenario ``rewind``: many restores of one snapshot."""

from __future__ import annotations

from pathlib import Path

from ramet.verify import inside, looks
from ramet.verify.scenarios.scenario import Scenario
from ramet.verify.world import Point, World, boot_source, fresh_token

RESTORES = 3


def run_rewind(world: World) -> None:
    """One snapshot of a running source, gone back to again and again."""
    old = fresh_token()
    boot_source(world)
    world.write_sentinels("source", old)
    world.remember_guest("source")
    with world.step("taking a named snapshot while it runs"):
        golden = world.named_snapshot("source", "golden")
    world.directories["golden"], world.tokens["golden"] = Path(golden.dir), old
    world.remember("golden")
    for number in range(1, RESTORES + 1):
        with world.step(f"letting it diverge, and going back ({number} of {RESTORES})"):
            world.write_sentinels("source", fresh_token())
            inside.rolls_back(world, "rewind-is-exact", "source", golden.id, token=old, at=f"restore {number}")
        looks.files_unchanged(world, "rewind-changes-nothing", "golden", at=f"restore {number}")
        world.reach(Point.REWOUND)


SCENARIO = Scenario(
    name="rewind",
    summary="One snapshot of a running source is gone back to again and again.",
    claims=("rewind-is-exact", "rewind-changes-nothing"),
    run=run_rewind,
)
