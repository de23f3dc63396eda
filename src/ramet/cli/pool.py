"""ramet pool"""

from __future__ import annotations

import time

import click

from ramet.cli import completion, output
from ramet.cli.context import MEMORY_POLICIES, App, verb
from ramet.cli.progress import counted
from ramet.errors import ConfigError

HEADERS = ("SOURCE", "SNAPSHOT", "PARKED", "STALE", "LOST", "OWN MEMORY")


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
@click.option("--size", type=int, metavar="K", help="How many are to be parked: what is missing is made, 0 empties it.")
@click.option(
    "--memory-policy",
    type=MEMORY_POLICIES,
    default="clone",
    show_default=True,
    help="Of those that are made: memory of their own, or the source's, read-only.",
)
def pool(app: App, source: str | None, size: int | None, memory_policy: str) -> None:
    """Park forks of a source, loaded and paused, to be claimed in an instant.

    SOURCE is an instance that sleeps, or snapshot:ID-or-name. A parked fork is a fork, with a memory, a disk and a VMM of
    its own. Its workload has been frozen since the snapshot; the kernel below it and the agent have run long enough to
    rehearse a command. `ramet fork SOURCE --from-pool` gives one its name, its identity and the time, and lets it run.

    Nothing runs in the background: the same command fills the pool up again after claims. If SOURCE has woken, its parked
    forks are stale: they descend from an older snapshot, and are not given out. Once it sleeps again, this replaces them,
    and those whose VMM has ended. The pool of a source that was deleted goes by the id that it had.

    Without --size the pool is shown; without SOURCE too, all pools are. With --json: {source source_id snapshot why parked
    stale lost own_memory_bytes}, or an array of that.
    """
    from ramet.model import MemoryPolicy

    if source is None:
        if size is not None:
            raise ConfigError("--size needs a SOURCE.", hint="`ramet pool` lists the pools that there are.")
        _list(app)
        return
    host = app.host()
    began = time.monotonic()
    if size is None:
        found = host.pool_get(source)
    else:
        with app.working(f"Parking forks of {source}") as say:
            found = host.pool(
                source,
                size=size,
                memory_policy=MemoryPolicy(memory_policy),
                on_result=counted(say, f"parking forks of {source}", size),
            )
    if app.json:
        output.json(found)
        return
    took = f" ({output.duration(time.monotonic() - began)})" if size is not None else ""
    output.line(f"{source}: {len(found.parked)} parked{took}")
    if found.stale:
        output.line(f"{source}: {len(found.stale)} stale: {found.why or 'it sleeps on another snapshot since'}")
    if found.lost:
        output.line(f"{source}: {len(found.lost)} lost: their VMMs have ended")


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
                one.snapshot or f"- ({one.why})",
                str(len(one.parked)),
                str(len(one.stale)),
                str(len(one.lost)),
                output.size(one.own_memory_bytes),
            )
            for one in found
        ],
        right=HEADERS[2:],
    )
