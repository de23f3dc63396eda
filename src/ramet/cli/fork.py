"""ramet fork"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from ramet.cli import completion, failures, output
from ramet.cli.context import HYPERVISORS, MEMORY_POLICIES, App, verb
from ramet.cli.progress import counted
from ramet.errors import ConfigError

if TYPE_CHECKING:
    from ramet.model import ForkFailure


@verb(
    "fork",
    examples=[
        "ramet fork web                          # web-1, asleep",
        "ramet fork web -n 10 --start            # web-1 to web-10, running",
        "ramet fork snapshot:golden blue green   # from a named snapshot",
        "ramet fork web -n 10 --start --memory-policy share",
        "ramet fork web --from-pool              # one that `ramet pool web` has parked",
    ],
)
@click.argument("source", shell_complete=completion.sources)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "-n",
    "--count",
    type=int,
    metavar="N",
    help="How many, 1000 at most. Without names they are web-1, web-2, … after their source.",
)
@click.option("--start", is_flag=True, help="Wake (or boot) the forks too.")
@click.option(
    "--memory-policy",
    type=MEMORY_POLICIES,
    default="clone",
    show_default=True,
    help="Memory of its own, or the source's, read-only, until its first sleep.",
)
@click.option("--partial", is_flag=True, help="Keep those that could be made, if not all could.")
@click.option("--from-pool", is_flag=True, help="Claim forks that `ramet pool` has parked; they run at once.")
@click.option("--hypervisor", type=HYPERVISORS, help="Another one, for a stopped source.")
def fork(
    app: App,
    source: str,
    names: tuple[str, ...],
    count: int | None,
    start: bool,
    memory_policy: str,
    partial: bool,
    from_pool: bool,
    hypervisor: str | None,
) -> int:
    """Fork an instance or a snapshot into one or many new instances.

    SOURCE is an instance, or snapshot:ID-or-name. A fork wakes with the memory and the disk of its source and an
    identity of its own; nothing that it does can reach the source or a sibling. Forks of a sleeping or running source
    sleep, forks of a stopped one are stopped, unless --start. A running source is paused for the capture and runs on,
    whatever happens. Several are made, and started, at once. All are made, or none: also if the first one shows that
    not all fit, in memory or on disk. With --partial those that could be made stay, the others are named with
    their reasons, and the status is that of the first failure.

    With --memory-policy share the forks have one page cache: each maps the published memory of its source, to which the
    kernel refuses every write, until its first sleep. The source's snapshot stays as long as one of them needs it.

    With --from-pool the forks are taken from those that `ramet pool` has parked: each gets its name and its identity and
    runs on. If too few are parked, or the source has changed since, nothing is done and nothing is forked in their place.

    With --json: an object with the instances, the failures, the source's pause, the copy method, and how many are left in
    the pool.
    """
    from ramet.model import Hypervisor, MemoryPolicy

    if count is not None and count > 0 and names and count != len(names):
        given = f"{len(names)} name{'s' if len(names) > 1 else ''}"
        raise ConfigError(f"-n {count} does not fit {given}.", hint="Give as many names, or none.")
    host = app.host()
    began = time.monotonic()
    with app.working(f"Forking {source}") as say:
        report = host.fork(
            source,
            names,
            count=count,
            start=start,
            hypervisor=Hypervisor(hypervisor) if hypervisor else None,
            memory_policy=MemoryPolicy(memory_policy),
            partial=partial,
            from_pool=from_pool,
            on_result=counted(say, f"forking {source}", count or len(names) or 1),
        )
    status = next((failure.exit_status for failure in report.failures), 0)
    if app.json:
        output.json(report)
        return status
    took = output.duration(time.monotonic() - began)
    for info in report.instances:
        output.line(f"{info.name}: {output.coloured(info.state)} (forked from {source})")
    if from_pool:
        output.line(f"{len(report.instances)} claimed in {took}; {report.left_in_pool} left in the pool of {source}")
        return status
    for failure in report.failures:
        failures.say(*_in_words(failure))
    files = "disk and memory" if all(info.snapshot for info in report.instances) else "disk"
    how = f", {files} by {report.method}" if report.method and report.instances else ""
    if memory_policy == MemoryPolicy.SHARE and report.instances:
        how = f", memory shared with {source}"
    pause = report.source_pause_s
    paused = f"; {source} was paused for {output.duration(pause)}" if pause is not None else ""
    wanted = f" of {len(report.instances) + len(report.failures)}" if report.failures else ""
    output.line(f"{len(report.instances)}{wanted} made in {took}{how}{paused}")
    return status


def _in_words(failure: ForkFailure) -> tuple[str, str | None]:
    """What is said of one that failed, and what to do."""
    message = f"{failure.name}: {failure.message}"
    if failure.left_id is None:
        return message, failure.hint
    left = f"What there is of it could not be removed again: {failure.left_why}"
    hints = [failure.hint, f"Remove it: ramet rm --force {failure.left_id}"]
    return f"{message}\n{left}", "\n".join(filter(None, hints))
