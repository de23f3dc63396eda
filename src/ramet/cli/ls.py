"""ramet ls"""

from __future__ import annotations

import click

from ramet.cli import failures, output
from ramet.cli.context import App, verb

HEADERS = ("NAME", "STATE", "MEMORY", "CPUS", "PID", "FORKED FROM", "AGE")
NONE = "No instances. `ramet create NAME` makes one."


@verb("ls", examples=["ramet ls", "ramet ls -q | xargs ramet standby"])
@click.option("-q", "--quiet", is_flag=True, help="Only names, one a line.")
def ls(app: App, quiet: bool) -> None:
    """List the instances.

    The state is what is true now, not what was recorded last. What is damaged is in the list, and said on stderr. With
    --json: an array of what `ramet show --json` prints.
    """
    instances = app.host().list()
    for info in instances:
        if info.failure_detail and info.failure in (None, "record-damaged"):
            failures.warn(f"{info.name}: {info.failure_detail}")
    if app.json:
        output.json(instances)
    elif quiet:
        for info in instances:
            output.line(info.name)
    else:
        output.table(
            HEADERS,
            [
                (
                    info.name,
                    output.instance_state(info),
                    output.memory(info.memory_mib),
                    str(info.cpus),
                    str(info.pid or "-"),
                    info.lineage[-1].name if info.lineage else "-",
                    output.age(info.created_at_unix_s),
                )
                for info in instances
            ],
            right=("MEMORY", "CPUS", "PID", "AGE"),
            if_empty=NONE,
        )
