"""ramet rm"""

from __future__ import annotations

import click

from ramet.cli import completion
from ramet.cli.context import App, verb
from ramet.cli.several import each
from ramet.errors import ConfigError


@verb("rm", examples=["ramet rm web-1 web-2", "ramet rm --all --force"])
@click.argument("names", nargs=-1, metavar="NAME...", shell_complete=completion.instances)
@click.option("--force", is_flag=True, help="Also end those that are running or paused.")
@click.option("--all", "everything", is_flag=True, help="All instances of the store.")
def rm(app: App, names: tuple[str, ...], force: bool, everything: bool) -> int:
    """Delete instances and what nothing else needs of them.

    Forks, siblings and sources do not notice. Named snapshots stay. With --json: an array, one element a NAME.
    """
    if everything == bool(names):
        raise ConfigError("rm needs either names or --all.", hint="`ramet ls` lists the instances.")
    host = app.host()
    if everything:
        names = tuple(info.name for info in host.list())

    def action(name: str) -> dict[str, object]:
        host.remove(name, force=force)
        return {"name": name, "deleted": True}

    return each(app, names, doing="Deleting", action=action, show=lambda name, _: f"{name}: deleted")
