"""What every verb shares: the global options, the ``Host`` that is made from them, and the ``verb`` decorator."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec

import click

from ramet.cli import failures, progress
from ramet.errors import ConfigError

if TYPE_CHECKING:
    from ramet.instances.host import Host

P = ParamSpec("P")


def make_host(home: Path | None, say: Callable[[str], None]) -> Host:
    """The Host that a verb works with; imported here, so that ``--help`` and ``--version`` do not pay for it."""
    from ramet.instances.host import Host

    _show_warnings()
    return Host(home, progress=say)


HYPERVISORS = click.Choice(["qemu", "firecracker"])
MEMORY_POLICIES = click.Choice(["clone", "share"])


@dataclass(slots=True)
class App:
    """The global options and what is shown while a verb works."""

    home: str | None = None
    debug: bool = False
    json: bool = False
    _say: Callable[[str], None] | None = field(default=None)

    def host(self) -> Host:
        """The Host of ``--home``, whose progress feeds ``working``.

        Raises:
            ConfigError: if ``--home`` cannot be a directory's path.
        """
        return make_host(self.home_dir(), self._progress)

    def home_dir(self) -> Path | None:
        """``--home``, absolute, or None if it was not given.

        Raises:
            ConfigError: for an empty path, and for one with a newline.
        """
        if self.home is None:
            return None
        if not self.home or "\n" in self.home:
            raise ConfigError(f"--home cannot be {self.home!r}.", hint="Give it a directory's path, without newlines.")
        return Path(self.home).absolute()

    @contextmanager
    def working(self, doing: str, *, lines: bool = False) -> Iterator[Callable[[str], None]]:
        """Show ``doing``, then what Host reports, while the block runs; yields the function that reports.

        On a terminal: one line on stderr, from the first second on. Elsewhere: nothing or, with ``lines``, a line per
        report.
        """
        if not self.debug and progress.possible():
            with progress.Spinner(doing) as spinner:
                yield from self._reporting(spinner.say)
        else:
            yield from self._reporting(_say_line if lines else None)

    def trace(self) -> None:
        """Write the traceback of the exception that is being handled to stderr, if ``--debug`` asks for it."""
        if self.debug:
            import traceback

            click.echo(traceback.format_exc(), err=True)

    def _reporting(self, say: Callable[[str], None] | None) -> Iterator[Callable[[str], None]]:
        self._say = say
        try:
            yield self._progress
        finally:
            self._say = None

    def _progress(self, text: str) -> None:
        if self._say is not None:
            self._say(text)


def _show_warnings() -> None:
    """Let what the library logs as a warning reach the person as one; without ``--debug`` it would be printed bare."""
    import logging

    class Shown(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            failures.warn(record.getMessage())

    logger = logging.getLogger("ramet")
    if not logger.hasHandlers():
        logger.addHandler(Shown(logging.WARNING))


def _say_line(text: str) -> None:
    click.echo(f"ramet: {text}", err=True)


class Verb(click.Command):
    """A command whose help ends with examples, and that knows ``--json`` even where its arguments are wrong."""

    examples: tuple[str, ...] = ()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--json" in args:
            ctx.ensure_object(App).json = True
        return super().parse_args(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Examples" if len(self.examples) > 1 else "Example"):
            for line in self.examples:
                formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


def verb(
    name: str,
    *,
    examples: Sequence[str],
    cls: type[Verb] = Verb,
    literal_arguments: bool = False,
) -> Callable[[Callable[Concatenate[App, P], int | None]], Verb]:
    """Make a verb of a function that takes the ``App`` and the parameters, and returns its exit status (None is 0).

    Its docstring is the help; ``--json`` is added to every verb. With ``literal_arguments`` options end at the first
    argument.
    """

    def wrap(function: Callable[Concatenate[App, P], int | None]) -> Verb:
        settings = {"allow_interspersed_args": not literal_arguments}
        command = click.command(name, cls=cls, context_settings=settings)(click.pass_obj(function))
        command.params.append(_json_option())
        command.examples = tuple(examples)
        return command

    return wrap


def _json_option() -> click.Option:
    def remember(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        ctx.ensure_object(App).json = value

    return click.Option(
        ["--json"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=remember,
        help="Print JSON on stdout, also for an error.",
    )


def seconds(_ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    """Option callback: a positive, finite number of seconds.

    Raises:
        ConfigError: otherwise.
    """
    if value is not None and not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{param.opts[0]} must be a positive number of seconds, not {value:g}.")
    return value
