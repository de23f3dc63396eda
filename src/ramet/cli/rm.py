"""ramet rm"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ramet.cli import completion, output, stale
from ramet.cli.context import App, verb
from ramet.cli.several import each
from ramet.errors import ConfigError
from ramet.spelling import in_short

if TYPE_CHECKING:
    from ramet.model import RemovalPlan


@verb("rm", examples=["ramet rm web-1 web-2", "ramet rm --dry-run web", "ramet rm --all --force"])
@click.argument("names", nargs=-1, metavar="NAME...", shell_complete=completion.instances)
@click.option("--force", is_flag=True, help="Also end those that are running or paused.")
@click.option("--all", "everything", is_flag=True, help="All instances of the store.")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
def rm(app: App, names: tuple[str, ...], force: bool, everything: bool, dry_run: bool) -> int:
    """Delete instances and what nothing else needs of them.

    Forks, siblings and sources do not notice. Named snapshots stay. With --force it says first what goes. With --json:
    an array, one element a NAME; with --dry-run {id name state kills_pid deletes_snapshots keeps_snapshots damaged}.
    """
    if everything == bool(names):
        raise ConfigError("rm needs either names or --all.", hint="`ramet ls` lists the instances.")
    host = app.host()
    if everything:
        names = tuple(info.name for info in host.list())
    if dry_run:
        return each(app, names, doing="Looking at", action=host.removal_plan, show=lambda _, plan: in_words(plan))

    notes: dict[str, str] = {}
    went_stale = None if app.json else stale.watched(host)

    def action(name: str) -> dict[str, object]:
        if force and not app.json:
            output.line(in_words(host.removal_plan(name)))
        host.remove(name, force=force)
        notes[name] = went_stale(name) if went_stale is not None else ""
        return {"name": name, "deleted": True}

    def said(name: str, _result: dict[str, object]) -> str:
        return stale.lines(f"{name}: deleted", notes[name])

    return each(app, names, doing="Deleting", action=action, show=said)


def in_words(plan: RemovalPlan) -> str:
    """``web: running; kills its VMM (process 4711): …; deletes its snapshot …``."""
    if plan.damaged is not None:
        return f"{plan.name}: damaged; deletes its directory, ends its VMM; its snapshots stay: nobody knows which they are"
    parts = [f"{plan.name}: {plan.state}"]
    if plan.kills_pid is not None:
        lost = "nobody has used it" if plan.state == "parked" else "its memory and disk are lost"
        parts.append(f"kills its VMM (process {plan.kills_pid}): {lost}")
    parts += [f"deletes snapshot {snapshot_id}" for snapshot_id in plan.deletes_snapshots]
    parts += [
        f"snapshot {snapshot_id} stays ({in_short(needed_by)})"
        for snapshot_id, needed_by in plan.keeps_snapshots.items()
    ]
    return "; ".join(parts)
