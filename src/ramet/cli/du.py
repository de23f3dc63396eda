"""ramet du"""

from __future__ import annotations

from ramet.cli import output
from ramet.cli.context import App, verb


@verb("du", examples=["ramet du"])
def du(app: App) -> None:
    """Show the disk that instances, snapshots and images use.

    ALLOCATED counts a block once for every file that shares it; EXCLUSIVE counts those that no other file shares, from
    the physical extents ('unknown' where the file system cannot tell). With --json: an array, in bytes.
    """
    uses = app.host().du()
    if app.json:
        output.json(uses)
        return
    output.table(
        ("KIND", "NAME", "ALLOCATED", "EXCLUSIVE", "APPARENT"),
        [
            (
                use.kind,
                use.name,
                output.size(use.allocated_bytes),
                "unknown" if use.exclusive_bytes is None else output.size(use.exclusive_bytes),
                output.size(use.apparent_bytes),
            )
            for use in uses
        ],
        right=("ALLOCATED", "EXCLUSIVE", "APPARENT"),
    )
