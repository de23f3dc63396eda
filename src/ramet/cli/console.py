"""ramet console"""

from __future__ import annotations

import errno
import os
import select
import socket

import click

from ramet.cli import completion, output, terminal
from ramet.cli.context import App, verb
from ramet.errors import HostError

DETACH = b"\x1d"
"""Ctrl-], as in telnet(1)."""
QUIET_S = 1.0
CHUNK_BYTES = 65536


@verb("console", examples=["ramet console web", "echo 'cat /proc/uptime' | ramet console web"])
@click.argument("name", shell_complete=completion.instances)
def console(app: App, name: str) -> None:
    """Attach to the guest's serial console.

    Ctrl-] detaches and leaves everything as it is. With stdin that is no terminal, its input is typed in, and the verb
    ends when the console has then been quiet for a second. With --json it does not attach, and prints the path of the
    console's socket.
    """
    host = app.host()
    if app.json:
        from ramet.paths import CONSOLE_SOCKET

        info = host.get(name)
        output.json({"name": info.name, "socket": os.path.join(info.run_dir, CONSOLE_SOCKET)})  # noqa: PTH118
        return
    with host.console_socket(name) as connection:
        interactive = os.isatty(terminal.STDIN)
        if interactive:
            click.echo(f"ramet: attached to {name}; Ctrl-] detaches, Return wakes the prompt", err=True)
        with terminal.raw_mode():
            ended = relay(connection, terminal.STDIN, detaches=interactive)
        if interactive:
            click.echo(f"\nramet: {'the console was closed' if ended else 'detached'}", err=True)


def relay(connection: socket.socket, stdin_fd: int, *, detaches: bool) -> bool:
    """Carry bytes both ways until one side has had enough; returns whether that was the guest's.

    Ours has had enough after Ctrl-] or, where stdin has ended, once the console has been quiet for ``QUIET_S``.
    """
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    poll.register(stdin_fd, select.POLLIN)
    reading = True
    while True:
        ready = [fd for fd, _ in poll.poll(None if reading else QUIET_S * 1000)]
        if not ready:
            return False
        if connection.fileno() in ready:
            try:
                data = connection.recv(CHUNK_BYTES)
            except ConnectionResetError:
                return True
            if not data:
                return True
            output.raw(data)
        if reading and stdin_fd in ready:
            typed = _typed(stdin_fd)
            before, detach, _ = typed.partition(DETACH) if detaches else (typed, b"", b"")
            try:
                connection.sendall(before)
            except (BrokenPipeError, ConnectionResetError):
                return True
            if detach:
                return False
            if not typed:
                poll.unregister(stdin_fd)
                reading = False


def _typed(stdin_fd: int) -> bytes:
    """What was typed; nothing once stdin has ended, which a terminal that closed says with EIO."""
    try:
        return os.read(stdin_fd, CHUNK_BYTES)
    except OSError as err:
        if err.errno == errno.EIO:
            return b""
        raise HostError(f"Could not read stdin: {err.strerror}.") from err
