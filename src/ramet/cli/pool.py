"""ramet pool"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from ramet.cli import completion, output
from ramet.cli.context import MEMORY_POLICIES, App, verb
from ramet.cli.progress import counted
from ramet.config import FORKS_MAX
from ramet.errors import ConfigError

if TYPE_CHECKING:
    from ramet.model import PoolInfo

HEADERS = ("SOURCE", "SNAPSHOT", "PARKED", "STALE", "LOST", "OWN MEMORY", "WHY")


@verb(
    "pool",
    examples=[
        "ramet pool web --size 8              # 8 forks of web, loaded and paused",
        "ramet fork web --from-pool           # one of them, running: web-1",
        "ramet pool snapshot:golden --size 8  # of a snapshot, which stays what it is",
        "ramet pool                           # all pools",
        "ramet pool web --size 0              # remove those that were not claimed",
    ],
)
@click.argument("source", required=False, shell_complete=completion.sources)
@click.option(
    "--size",
    type=int,
    metavar="K",
    help=f"How many are to be parked, up to {FORKS_MAX}: what is missing is made, what is too many removed. 0 empties the pool.",
)
@click.option(
    "--memory-policy",
    type=MEMORY_POLICIES,
    help="Of those that are made, not of those that there are: memory of their own (clone, the default), or the source's, "
    "read-only.",
)
def pool(app: App, source: str | None, size: int | None, memory_policy: str | None) -> None:
    """Park forks of a source, loaded and paused, to be claimed in an instant.

    SOURCE is an instance that sleeps, or snapshot:ID-or-name. A parked fork is a fork, with a memory, a disk and a VMM of
    its own. Its workload has been frozen since the snapshot; the kernel below it and the agent have run long enough to
    rehearse a command. `ramet fork SOURCE --from-pool` gives one its name, its identity and the time, and lets it run.

    Nothing runs in the background: the same command fills the pool up again after claims. If SOURCE has woken, its parked
    forks are stale: they descend from an older snapshot, and are not given out. Once it sleeps again, this replaces them,
    and those whose VMM has ended. The pool of a source that was deleted goes by the id that
    it had, or by that of a fork in it.

    Without --size the pool is shown; without SOURCE too, all pools are. With --json: {source source_id snapshot why parked
    stale lost own_memory_bytes}, or an array of that.
    """
    from ramet.model import MemoryPolicy

    if size is None and memory_policy is not None:
        raise ConfigError("--memory-policy needs a --size.", hint="It is chosen for the forks that are made.")
    if source is None:
        if size is not None:
            raise ConfigError("--size needs a SOURCE.", hint="`ramet pool` lists the pools that there are.")
        _list(app)
        return
    host = app.host()
    began = time.monotonic()
    before = host.pool_get(source)
    if size is None:
        found = before
    else:
        with app.working(f"Parking forks of {source}") as say:
            found = host.pool(
                source,
                size=size,
                memory_policy=MemoryPolicy(memory_policy or MemoryPolicy.CLONE),
                on_result=counted(say, f"parking forks of {source}", size),
            )
    if app.json:
        output.json(found)
        return
    did = f" ({_did(before, found)} in {output.duration(time.monotonic() - began)})" if size is not None else ""
    source = found.source
    output.line(f"{source}: {len(found.parked)} parked{did}")
    if found.stale:
        output.line(f"{source}: {len(found.stale)} stale: {found.why or f'of an earlier snapshot of {source}'}")
    if found.lost:
        output.line(f"{source}: {len(found.lost)} lost: no VMM any more")


def _did(before: PoolInfo, after: PoolInfo) -> str:
    """What filling a pool has changed."""
    made = len(set(after.parked) - set(before.parked))
    removed = len({*before.parked, *before.stale, *before.lost} - {*after.parked, *after.stale, *after.lost})
    return (
        ", ".join(f"{count} {what}" for count, what in ((made, "made"), (removed, "removed")) if count) or "as it was"
    )


def _list(app: App) -> None:
    found = app.host().pools()
    if app.json:
        output.json(found)
        return
    output.table(
        HEADERS,
        [
            (
                one.source,
                one.snapshot or "-",
                str(len(one.parked)),
                str(len(one.stale)),
                str(len(one.lost)),
                output.size(one.own_memory_bytes),
                one.why or "",
            )
            for one in found
        ],
        right=HEADERS[2:-1],
        if_empty="No pools. `ramet pool SOURCE --size K` fills one.",
    )
