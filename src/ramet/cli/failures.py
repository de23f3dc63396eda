"""How an error reaches the person (stderr) and the program (``--json``, stdout)."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import click

from ramet.cli import progress
from ramet.errors import InterruptedByUserError, RametError

INTERNAL_STATUS = 70
"""EX_SOFTWARE of sysexits.h: a bug of ours."""
USAGE_STATUS = 2
COULD_NOT_RUN_STATUS = 2
BROKEN_PIPE_STATUS = 141
"""128 + SIGPIPE, what a shell gives for a program that the signal ended."""


def describe(err: RametError) -> dict[str, object]:
    """``{"code", "message", "hint", …}`` and the objects that the error carries, such as ``dependents``."""
    found: dict[str, object] = {"code": err.code, "exit_status": err.exit_status, "message": err.message}
    if err.hint:
        found["hint"] = err.hint
    carried = {key: value for key, value in vars(err).items() if key != "hint" and not key.startswith("_")}
    return found | carried


def say(message: str, hint: str | None = None) -> None:
    """Write an error to stderr: a line that begins with ``ramet: error:``, then details and the next step, indented."""
    first, *more = message.splitlines() or [""]
    with suppress(OSError):  # nobody reads it: the status still says it
        click.echo(visible(f"ramet: error: {first}"), err=True)
        for line in [*more, *(hint.splitlines() if hint else [])]:
            click.echo(visible(line if line.startswith(" ") else f"  {line}"), err=True)


def warn(message: str) -> None:
    """Write a warning to stderr, on a line of its own."""
    with suppress(OSError):
        progress.clear_line()
        click.echo(visible(f"ramet: warning: {message}"), err=True)


def visible(text: str) -> str:
    """``text`` with control characters escaped: some of it a guest wrote, and it must not steer the terminal."""
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def could_not_run() -> Iterator[None]:
    """For verbs whose status is a verdict: an error of the block, but for an interruption, has the status that is none."""
    try:
        yield
    except InterruptedByUserError:
        raise
    except RametError as err:
        err.exit_status = COULD_NOT_RUN_STATUS
        raise


def usage(err: click.ClickException) -> tuple[str, str | None]:
    """The message of a usage error and the hint that leads to the verb's help."""
    ctx = err.ctx if isinstance(err, click.UsageError) else None
    hint = f"Try '{ctx.command_path} --help'." if ctx is not None else None
    return err.format_message(), hint


def output_is_gone() -> bool:
    """Whether the reader of stdout or stderr has gone (poll(2): POLLERR on the write end of a pipe, else POLLHUP)."""
    poll = select.poll()
    poll.register(1, 0)
    poll.register(2, 0)
    gone = select.POLLERR | select.POLLHUP
    return any(events & gone for _, events in poll.poll(0))


def drop_output() -> None:
    """Point stdout and stderr at /dev/null if they cannot be flushed: the interpreter would fail on them at its end."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue  # started with it closed
        try:
            stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
