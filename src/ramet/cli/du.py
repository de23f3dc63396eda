"""ramet du"""

from __future__ import annotations

from ramet.cli import output
from ramet.cli.context import App, verb


@verb("du", examples=["ramet du"])
def du(app: App) -> None:
    """Show the disk and memory that instances, snapshots and images use.

    ALLOCATED counts a block once for every file that shares it, in the total once for all; EXCLUSIVE counts those that
    no other file shares, from the physical extents ('unknown' where the file system cannot tell). OWN MEMORY is what a
    VMM has in no file: what its guest has written, and the VMM's own; of a snapshot, the copy in RAM that its forks
    share. PSS adds its share of what it maps together with
    others. With --json: an array, in bytes, the total last.
    """
    uses = app.host().du()
    if app.json:
        output.json(uses)
        return
    output.table(
        ("KIND", "NAME", "ALLOCATED", "EXCLUSIVE", "APPARENT", "OWN MEMORY", "PSS"),
        [
            (
                use.kind,
                use.name,
                output.size(use.allocated_bytes),
                "unknown" if use.exclusive_bytes is None else output.size(use.exclusive_bytes),
                output.size(use.apparent_bytes),
                "-" if use.own_memory_bytes is None else output.size(use.own_memory_bytes),
                "-" if use.pss_bytes is None else output.size(use.pss_bytes),
            )
            for use in uses
        ],
        right=("ALLOCATED", "EXCLUSIVE", "APPARENT", "OWN MEMORY", "PSS"),
    )
