"""ramet logs"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import click

from ramet.cli import completion, output, signals
from ramet.cli.context import App, verb
from ramet.cli.legible import RESET, Legible
from ramet.errors import ConfigError, HostError, NotFoundError, host_errors
from ramet.linux import foreign

CHUNK_BYTES = 1 << 16
INTERRUPTED_STATUS = 130
FOREVER_S = 3600.0 * 24 * 365


Show = Callable[[bytes], None]


@verb("logs", examples=["ramet logs web", "ramet logs web -f", "ramet logs web --vmm"])
@click.argument("name", shell_complete=completion.instances)
@click.option("--vmm", is_flag=True, help="The VMM's own log instead of the guest's console.")
@click.option("-f", "--follow", is_flag=True, help="Go on as the log grows, until Ctrl-C.")
@click.option("--raw", is_flag=True, help="Every byte as it was written, on a terminal too.")
def logs(app: App, name: str, vmm: bool, follow: bool, raw: bool) -> int:
    """Print the log of the guest's console, or of its VMM.

    Works in every state. On a terminal it is text and colours: what would move its cursor, change its settings or make
    it answer is left out, unless --raw. Elsewhere every byte is as it was written. With --json: the absolute paths of
    both logs.
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
        with _shown(raw) as show:
            _print_rest(fd, show)
            if follow:
                _follow(fd, show)
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


@contextmanager
def _shown(raw: bool) -> Iterator[Show]:
    """What prints bytes of a log, and puts the terminal's colours back at the end."""
    if raw or not output.on_terminal():
        yield output.raw
        return
    legible = Legible()
    try:
        yield lambda data: output.text(legible.piece(data))
    finally:
        if legible.is_coloured:
            output.text(RESET)


def _print_rest(fd: int, show: Show) -> bool:
    """Print what there is from the current offset on; returns whether there was any."""
    any_data = False
    while data := os.read(fd, CHUNK_BYTES):
        show(data)
        any_data = True
    return any_data


def _follow(fd: int, show: Show) -> NoReturn:
    """Print what is appended, until an interruption; a log that became shorter is printed from its beginning again."""
    from ramet.process import wait_until

    def grown() -> bool:
        if os.fstat(fd).st_size < os.lseek(fd, 0, os.SEEK_CUR):
            os.lseek(fd, 0, os.SEEK_SET)
        return _print_rest(fd, show)

    while True:
        wait_until(grown, FOREVER_S, what="a log that grows")
