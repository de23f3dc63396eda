"""What the shell completes: names that are in the store, and those of our own catalogues. It only looks; nothing is made, locked
or tidied.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ramet import config
from ramet.errors import ConfigError
from ramet.paths import StorePaths

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


def instances(ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
    """Names of instances."""
    return [name for name in _names(_store(ctx).instance_names) if name.startswith(begun)]


def snapshots(ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
    """Names of snapshots."""
    return [name for name in _names(_store(ctx).snapshot_names) if name.startswith(begun)]


def sources(ctx: click.Context, parameter: click.Parameter, begun: str) -> list[str]:
    """What can be forked: instances, and snapshots with ``snapshot:`` before their names."""
    named = [f"snapshot:{name}" for name in _names(_store(ctx).snapshot_names)]
    return [*instances(ctx, parameter, begun), *(name for name in named if name.startswith(begun))]


def images(ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
    """Names of images."""
    return [name for name in _names(_store(ctx).images / "tags") if name.startswith(begun)]


def places(ctx: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem[str]]:
    """Either side of a copy: the first of a path in a guest, or a file of this host's."""
    from click.shell_completion import CompletionItem

    there = [f"{name}:{path}" for name in instances(ctx, parameter, "") for path in ("/", "/data/")]
    found = [CompletionItem(place) for place in there if place.startswith(begun)]
    directory, slash, name = begun.rpartition("/")
    here = [f"{directory}{slash}{one}" for one in _names(Path(directory + slash)) if one.startswith(name)]
    if ":" in begun or not here:
        return found
    # The shell's own completion of files is used only where there is nothing else (bash(1), compopt -o default).
    return [*found, *map(CompletionItem, here)] if found else [CompletionItem(begun, type="file")]


def scenarios(_ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
    """Scenarios of ``ramet verify``."""
    from ramet import verify

    return [name for name in verify.scenario_names() if name.startswith(begun)]


def sabotages(_ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
    """Sabotages of ``ramet verify``, and all of them."""
    from ramet import verify

    return [name for name in (*verify.sabotage_names(), "all") if name.startswith(begun)]


def benchmarks(_ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
    """Benchmarks of ``ramet bench``."""
    from ramet.bench.benchmarks import catalogue

    return [one.name for one in catalogue.named(()) if one.name.startswith(begun)]


def _store(ctx: click.Context) -> StorePaths:
    home = ctx.find_root().params.get("home")
    try:
        return StorePaths(home=Path(home) if home else config.default_home())
    except ConfigError:
        return StorePaths(home=Path("/nonexistent"))


def _names(directory: Path) -> Iterator[str]:
    try:
        entries = sorted(directory.iterdir())
    except OSError:
        return  # nothing has been made yet, or it is not ours to see
    for entry in entries:
        if not entry.name.startswith("."):
            yield entry.name
