"""ramet exec"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import click

from ramet.cli import completion, output, terminal
from ramet.cli.context import App, Verb, seconds, verb
from ramet.errors import ConfigError, InterruptedByUserError
from ramet.signals import ENDING_SIGNALS

if TYPE_CHECKING:
    from ramet.guests.client import ExecControl
    from ramet.model import ExecResult

FORWARDED = (*ENDING_SIGNALS, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
ENDINGS_BEFORE_GIVING_UP = 3
NOT_EXECUTABLE_STATUS, NOT_FOUND_STATUS = 126, 127


class ExecVerb(Verb):
    """Options stand before or after NAME and end at ``--`` or at the first word after NAME: the rest is the guest's."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, self._name_last(ctx, args))

    def _name_last(self, ctx: click.Context, args: list[str]) -> list[str]:
        """``web -t -- sh -c ls`` becomes ``-t -- web sh -c ls``, which click's parser takes as it is meant."""
        at = self._first_word(ctx, args)
        if at == len(args):
            return args
        name, rest = args[at], args[:at] + args[at + 1 :]
        begins = at + self._first_word(ctx, args[at + 1 :])
        if begins > at and "--" in args[:at]:
            begins = at  # the options had ended before NAME; what looks like one belongs to the guest
        return [*rest[:begins], name, *rest[begins:]]

    def _first_word(self, ctx: click.Context, args: list[str]) -> int:
        """Index of the first argument that is neither an option nor an option's value; len(args) if there is none."""
        values, _, _ = self.make_parser(ctx).parse_args(list(args))
        argv = values.get("argv")
        argv = argv if isinstance(argv, (tuple, list)) else ()  # click's sentinel where there is no such argument
        found = isinstance(values.get("name"), str)
        return len(args) - len(argv) - found if found else len(args)


@verb(
    "exec",
    cls=ExecVerb,
    literal_arguments=True,
    examples=[
        "ramet exec web -- uname -a",
        "ramet exec web -e LANG=C -w /data -- sh -c 'ls | wc -l'",
        "tar c site | ramet exec web -- tar x -C /data",
        "ramet exec -t web sh",
    ],
)
@click.argument("name", shell_complete=completion.instances)
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="[--] ARGV...")
@click.option("-e", "--env", "variables", multiple=True, metavar="K=V", help="Set an environment variable. Repeatable.")
@click.option("-w", "--workdir", metavar="DIR", help="Working directory in the guest.")
@click.option("-t", "--tty", is_flag=True, help="Give the command a terminal; yours is in raw mode meanwhile.")
@click.option("-i", "--interactive", is_flag=True, help="Pass stdin even if it is a terminal.")
@click.option(
    "--timeout", type=float, callback=seconds, metavar="S", help="End the command after S seconds: status 124."
)
@click.option("-d", "--detach", is_flag=True, help="Leave the command running in the guest and print its pid.")
def exec(
    app: App,
    name: str,
    argv: tuple[str, ...],
    variables: tuple[str, ...],
    workdir: str | None,
    tty: bool,
    interactive: bool,
    timeout: float | None,
    detach: bool,
) -> int:
    """Run a command in the guest.

    Output is streamed as it comes, stdin is passed on if it is no terminal (or with -t, -i), and signals are forwarded;
    the third Ctrl-C gives up waiting, and the command is ended. The status is the command's own, 128 + N if signal N
    ended it, 124 past --timeout, 127 if the guest has no such command, 126 if it cannot be run. With --json: an object
    at the end, with the output in it.
    """
    env = parse_env(variables)
    if detach and (tty or interactive):
        raise ConfigError("A detached command has neither a terminal nor stdin.", hint="Leave out -t and -i, or -d.")
    host = app.host()
    if detach:
        with _not_started_as_shells_say_it():
            result = host.exec(name, argv, env=env, cwd=workdir, timeout_s=timeout, detach=True)
        if app.json:
            _print_json(result)
        else:
            output.line(f"{name}: pid {result.pid}")
        return 0
    passes_stdin = tty or interactive or not os.isatty(terminal.STDIN)
    with (
        _not_started_as_shells_say_it(),
        closing(make_control()) as control,
        forwarding(control, resizes=tty),
        _raw_if(tty),
    ):
        result = host.exec(
            name,
            argv,
            env=env,
            cwd=workdir,
            stdin=terminal.STDIN if passes_stdin else None,
            stdout=None if app.json else output.raw,
            stderr=None if app.json else output.raw_error,
            timeout_s=timeout,
            pty=terminal.size() if tty else None,
            control=control,
        )
    if app.json:
        _print_json(result)
    if result.timed_out:
        click.echo(f"ramet: {name}: the command ran longer than {timeout:g} s and was ended", err=True)
    return result.exit_status


def parse_env(variables: Sequence[str]) -> dict[str, str]:
    """The environment in ``K=V`` words; the last one of a name wins.

    Raises:
        ConfigError: for a word without ``=`` or without a name.
    """
    found = {}
    for word in variables:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"{word!r} is not an environment variable.", hint="Write it like -e LANG=C.")
        found[key] = value
    return found


def make_control() -> ExecControl:
    """What signals and resizes go through; imported here because ``--help`` does without."""
    from ramet.guests.client import ExecControl

    return ExecControl()


@contextmanager
def _not_started_as_shells_say_it() -> Iterator[None]:
    """Give the error of a command that could not be started the status that sh(1), env(1) and their like have for it."""
    from ramet.guests.client import GuestRefusedError

    try:
        yield
    except GuestRefusedError as err:
        err.exit_status = NOT_FOUND_STATUS if err.errno == errno.ENOENT else NOT_EXECUTABLE_STATUS
        raise


@contextmanager
def forwarding(control: ExecControl, *, resizes: bool) -> Iterator[None]:
    """Send our signals to the guest's command while the block runs, and the terminal's size when it changes.

    The third one that should have ended the command gives up waiting: the session ends, and the agent kills the command.

    Raises:
        InterruptedByUserError: then.
    """
    endings = 0

    def forward(number: int, _frame: FrameType | None) -> None:
        nonlocal endings
        endings += number in ENDING_SIGNALS
        if endings >= ENDINGS_BEFORE_GIVING_UP:
            raise KeyboardInterrupt
        control.send_signal(number)

    def resize(_number: int, _frame: FrameType | None) -> None:
        control.resize(*terminal.size())

    handlers = dict.fromkeys(FORWARDED, forward) | ({signal.SIGWINCH: resize} if resizes else {})
    before = {}
    try:
        for number, handler in handlers.items():
            if signal.getsignal(number) != signal.SIG_IGN:  # what nohup(1) or a shell ignores stays ignored
                before[number] = signal.signal(number, handler)
        yield
    except KeyboardInterrupt as err:
        raise InterruptedByUserError(
            f"Gave up waiting: the command did not end after {ENDINGS_BEFORE_GIVING_UP} signals. It has been killed."
        ) from err
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def _raw_if(tty: bool) -> Iterator[None]:
    if tty:
        with terminal.raw_mode():
            yield
    else:
        yield


def _print_json(result: ExecResult) -> None:
    """The result with its output as text or, if it is not UTF-8, in base64; ``encoding`` says which."""
    import base64

    found: dict[str, object] = {
        "status": result.status,
        "signal": result.signal,
        "timed_out": result.timed_out,
        "exit_status": result.exit_status,
        "pid": result.pid,
    }
    try:
        found |= {"encoding": "utf-8", "stdout": result.stdout.decode(), "stderr": result.stderr.decode()}
    except UnicodeDecodeError:
        found["encoding"] = "base64"
        found |= {key: base64.b64encode(getattr(result, key)).decode() for key in ("stdout", "stderr")}
    output.json(found)
