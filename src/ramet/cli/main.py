"""The entry point: global options, verbs loaded when they are asked for, and the only place that exits the process."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

import click

from ramet.cli import failures, output, signals, terminal
from ramet.cli.catalogue import LazyGroup
from ramet.cli.context import App
from ramet.errors import InterruptedByUserError, RametError

COMPLETION_VARIABLE = "_RAMET_COMPLETE"


def _show_version(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted:
        from ramet import __version__, version

        click.echo(f"ramet {version.full(__version__)}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    subcommand_metavar="VERB [ARGS]...",
)
@click.option(
    "--home",
    type=click.Path(),
    metavar="PATH",
    help="The store. Default: $RAMET_HOME, else /var/lib/ramet as root, else ~/.local/state/ramet.",
)
@click.option("--debug", is_flag=True, envvar="RAMET_DEBUG", help="Log to stderr, with tracebacks (or RAMET_DEBUG=1).")
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and the commit, and exit.",
)
@click.pass_obj
def cli(app: App, home: str | None, debug: bool) -> None:
    """Run Linux microVMs, put them to sleep, fork them copy-on-write, and prove that the forks are isolated.

    Every verb has --help with examples, and --json.
    """
    app.home = home
    app.debug = debug
    if debug:
        import logging

        logging.basicConfig(
            level=logging.DEBUG, stream=sys.stderr, format="%(relativeCreated)6d ms  %(name)s: %(message)s"
        )


def run(argv: Sequence[str]) -> int:
    """Run one command line and return its exit status; every error has been reported."""
    app = App()
    try:
        return _reported(app, argv)
    except BrokenPipeError as err:
        if failures.output_is_gone():
            return failures.BROKEN_PIPE_STATUS
        return _internal(app, err)
    finally:
        failures.drop_output()


def _reported(app: App, argv: Sequence[str]) -> int:
    try:
        return _invoke(app, argv)
    except click.exceptions.NoArgsIsHelpError as err:
        click.echo(err.ctx.get_help() if err.ctx else "", err=True)
        return failures.USAGE_STATUS
    except click.ClickException as err:
        message, hint = failures.usage(err)
        return _fail(app, {"code": "usage", "exit_status": failures.USAGE_STATUS}, message, hint)
    except RametError as err:
        app.trace()
        return _fail(app, failures.describe(err), err.message, err.hint)
    except (KeyboardInterrupt, click.Abort) as err:
        app.trace()
        by = "a signal" if isinstance(err, signals.TerminatedError) and err.number != signal.SIGINT else "Ctrl-C"
        stopped = InterruptedByUserError(
            f"Interrupted by {by}.",
            hint="Nothing was left half done; `ramet ls` shows the state of each instance.",
        )
        return _fail(app, failures.describe(stopped), stopped.message, stopped.hint)
    except BrokenPipeError:
        raise
    except Exception as err:  # noqa: BLE001 - the last resort: whatever it is, it is reported, and the status says so
        return _internal(app, err)


def _invoke(app: App, argv: Sequence[str]) -> int:
    try:
        with cli.make_context("ramet", list(argv), obj=app) as ctx:
            status = cli.invoke(ctx)
    except click.exceptions.Exit as done:  # --help and --version end this way
        return done.exit_code
    finally:
        signals.over()
    return status if isinstance(status, int) else 0


def _fail(app: App, error: dict[str, object], message: str, hint: str | None) -> int:
    failures.say(message, hint)
    status = error["exit_status"]
    assert isinstance(status, int)
    if app.json:
        with suppress(RametError):  # stdout may be what failed: it has been said on stderr
            output.json({"error": {"message": message, **({"hint": hint} if hint else {}), **error}})
    return status


def _internal(app: App, err: Exception) -> int:
    if app.debug:
        app.trace()
    error: dict[str, object] = {"code": "internal", "exit_status": failures.INTERNAL_STATUS}
    hint = "This is a bug in Ramet. Run it again with --debug for the traceback, and file that."
    return _fail(app, error, f"Internal error: {type(err).__name__}: {err}", hint)


def main() -> NoReturn:
    """Run the command line of this process and exit."""
    terminal.claim_standard_descriptors()
    if COMPLETION_VARIABLE in os.environ:
        from ramet.cli import bash_completion  # noqa: F401 - click finds it by the shell's name

        cli.main(prog_name="ramet", complete_var=COMPLETION_VARIABLE)
    signals.install()
    sys.exit(run(sys.argv[1:]))
