"""ramet logs"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import click

from ramet.cli import completion, output, signals
from ramet.cli.context import App, verb
from ramet.errors import ConfigError, HostError, NotFoundError, host_errors
from ramet.linux import foreign

CHUNK_BYTES = 1 << 16
INTERRUPTED_STATUS = 130
FOREVER_S = 3600.0 * 24 * 365


@verb("logs", examples=["ramet logs web", "ramet logs web -f", "ramet logs web --vmm"])
@click.argument("name", shell_complete=completion.instances)
@click.option("--vmm", is_flag=True, help="The VMM's own log instead of the guest's console.")
@click.option("-f", "--follow", is_flag=True, help="Go on as the log grows, until Ctrl-C.")
def logs(app: App, name: str, vmm: bool, follow: bool) -> int:
    """Print the log of the guest's console, or of its VMM.

    Works in every state. With --json: the absolute paths of both logs.
    """
    if follow and app.json:
        raise ConfigError("--json prints the paths of the logs: there is nothing to follow.", hint="Leave out -f.")
    paths = app.host().logs(name)
    if app.json:
        output.json({kind: str(path) for kind, path in paths.items()})
        return 0
    kind = "vmm" if vmm else "console"
    with host_errors(f"read {paths[kind]}"):
        fd = _open(paths[kind], name, kind)
    try:
        _print_rest(fd)
        if follow:
            _follow(fd)
    except KeyboardInterrupt:
        if not follow:
            raise
        signals.over()
        return INTERRUPTED_STATUS  # the way that -f ends: nothing to complain about
    finally:
        os.close(fd)
    return 0


def _open(path: Path, name: str, kind: str) -> int:
    try:
        return foreign.open_regular(path)
    except FileNotFoundError as err:
        raise NotFoundError(f"{name!r} has no {kind} log yet.", hint="It is written from the first boot on.") from err
    except OSError as err:
        raise HostError(f"Could not read the {kind} log of {name!r}: {err.strerror} ({path}).") from err


def _print_rest(fd: int) -> bool:
    """Print what there is from the current offset on; returns whether there was any."""
    any_data = False
    while data := os.read(fd, CHUNK_BYTES):
        output.raw(data)
        any_data = True
    return any_data


def _follow(fd: int) -> NoReturn:
    """Print what is appended, until an interruption; a log that became shorter is printed from its beginning again."""
    from ramet.process import wait_until

    def grown() -> bool:
        if os.fstat(fd).st_size < os.lseek(fd, 0, os.SEEK_CUR):
            os.lseek(fd, 0, os.SEEK_SET)
        return _print_rest(fd)

    while True:
        wait_until(grown, FOREVER_S, what="a log that grows")
