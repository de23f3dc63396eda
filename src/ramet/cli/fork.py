"""ramet fork"""

from __future__ import annotations

import time

import click

from ramet.cli import completion, output
from ramet.cli.context import App, verb
from ramet.errors import ConfigError


@verb(
    "fork",
    examples=[
        "ramet fork web                          # web-1, asleep",
        "ramet fork web -n 10 --start            # web-1 to web-10, running",
        "ramet fork snapshot:golden blue green   # from a named snapshot",
    ],
)
@click.argument("source", shell_complete=completion.sources)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("-n", "--count", type=int, metavar="N", help="How many. Without names they are SOURCE-1, SOURCE-2, …")
@click.option("--start", is_flag=True, help="Wake (or boot) the forks too.")
@click.option("--hypervisor", type=click.Choice(["qemu", "firecracker"]), help="Another one, for a stopped source.")
def fork(app: App, source: str, names: tuple[str, ...], count: int | None, start: bool, hypervisor: str | None) -> None:
    """Fork an instance or a snapshot into one or many new instances.

    SOURCE is an instance, or snapshot:ID-or-name. A fork wakes with the memory and the disk of its source and an
    identity of its own; nothing that it does can reach the source or a sibling. All are made, or none. Forks of a
    sleeping or running source sleep, forks of a stopped one are stopped, unless --start. A running source is paused for
    the capture and runs on, whatever happens. With --json: an object with the instances, the source's pause and the
    copy method.
    """
    from ramet.model import Hypervisor

    if count is not None and count < 1:
        raise ConfigError(f"Cannot make {count} forks.", hint="Give -n a number from 1 up.")
    if count is not None and names and count != len(names):
        raise ConfigError(f"-n {count} does not fit {len(names)} names.", hint="Give as many names, or none.")
    host = app.host()
    began = time.monotonic()
    with app.working(f"Forking {source}"):
        report = host.fork(
            source, names, count=count, start=start, hypervisor=Hypervisor(hypervisor) if hypervisor else None
        )
    if app.json:
        output.json(report)
        return
    took = output.duration(time.monotonic() - began)
    for info in report.instances:
        output.line(f"{info.name}: {output.coloured(info.state)} (forked from {source})")
    files = "disk and memory" if all(info.snapshot for info in report.instances) else "disk"
    how = f", {files} by {report.method}" if report.method else ""
    pause = report.source_pause_s
    paused = f"; {source} was paused for {output.duration(pause)}" if pause is not None else ""
    output.line(f"{len(report.instances)} made in {took}{how}{paused}")
