"""``python -m lab -- COMMAND``: run a command on a Linux that has KVM, whatever this host has.

The command sees this host's files (what it writes stays in the lab), this environment and this directory; its streams and its
exit status are its own. ``$RAMET_LAB`` is 1 in it, and with ``--disk`` ``$RAMET_HOME`` lies on that disk.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from types import FrameType

import click

from lab import emulator, image, machine
from ramet.cli import exec as cli_exec
from ramet.cli import output, signals, terminal
from ramet.errors import ConfigError, InterruptedByUserError, RametError
from ramet.guests.client import GuestRefusedError
from ramet.signals import ENDING_SIGNALS

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".state"
NOT_RUN_STATUS = 125
"""Of the lab itself, as of env(1) and timeout(1); any other status is the command's."""
BROKEN_PIPE_STATUS = 128 + signal.SIGPIPE
GIVE_UP_S = 20
SCALAR_SHA256 = "~0x1000020000000000:~0x200001a8"
"""Emulated, OpenSSL's plain SHA-256 is 2.6 times as fast as the one for AVX2 and 1.5 times as fast as the one for SSSE3."""
_DISK = re.compile(r"(xfs|ext4):([1-9][0-9]*)G")


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--memory", "memory_mib", type=click.IntRange(1024), default=6144, show_default=True, metavar="MIB")
@click.option(
    "--cpus",
    type=click.IntRange(1),
    default=min(os.cpu_count() or 1, 8),
    show_default="the host's, 8 at most",
    metavar="N",
)
@click.option(
    "--disk", metavar="xfs:4G", help="A disk of its own, mounted at /run/lab/disk: xfs (with reflinks) or ext4."
)
@click.option("--timeout", "timeout_s", type=float, metavar="S", help="End the command after S seconds: status 124.")
@click.option("-v", "--verbose", is_flag=True, help="Say how long it took to come up.")
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND...")
def cli(
    memory_mib: int, cpus: int, disk: str | None, timeout_s: float | None, verbose: bool, argv: tuple[str, ...]
) -> int:
    """Run COMMAND in a lab with KVM and exit with its status (125 if it could not be run)."""
    file_system, disk_gib = _parse_disk(disk)
    qemu = emulator.command(CACHE)
    hardware = machine.Hardware(memory_mib=memory_mib, cpus=cpus, file_system=file_system, disk_mib=disk_gib * 1024)
    began = time.monotonic()
    with machine.lab(qemu, image.obtain(CACHE), hardware) as agent:
        if verbose:
            click.echo(f"lab: up after {time.monotonic() - began:.1f} s", err=True)
        is_terminal = os.isatty(terminal.STDIN) and os.isatty(terminal.STDOUT)
        with (
            closing(cli_exec.make_control()) as control,
            cli_exec.forwarding(control, resizes=is_terminal),
            _giving_up(),
            terminal.raw_mode() if is_terminal else nullcontext(),
        ):
            result = agent.exec(
                argv,
                env=_environment(file_system),
                cwd=str(Path.cwd()),
                stdin=terminal.STDIN,
                stdout=output.raw,
                stderr=output.raw_error,
                timeout_s=timeout_s,
                pty=terminal.size() if is_terminal else None,
                control=control,
            )
    if result.timed_out:
        click.echo(f"lab: the command ran longer than {timeout_s:g} s and was ended", err=True)
    return result.exit_status


@contextmanager
def _giving_up() -> Iterator[None]:
    """End the lab some time after a signal that was to end its command: a lab that hangs would pass none on.

    Raises:
        InterruptedByUserError: then.
    """

    def give_up(_number: int, _frame: FrameType | None) -> None:
        raise InterruptedByUserError(f"The command did not end within {GIVE_UP_S} s of a signal. The lab was ended.")

    def then_give_up(forward: Callable[[int, FrameType | None], object]) -> Callable[[int, FrameType | None], None]:
        def handle(number: int, frame: FrameType | None) -> None:
            signal.setitimer(signal.ITIMER_REAL, GIVE_UP_S)
            forward(number, frame)

        return handle

    signal.signal(signal.SIGALRM, give_up)
    for number in ENDING_SIGNALS:
        forward = signal.getsignal(number)
        if callable(forward):
            signal.signal(number, then_give_up(forward))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _parse_disk(text: str | None) -> tuple[str | None, int]:
    if text is None:
        return None, 0
    match = _DISK.fullmatch(text)
    if match is None:
        raise ConfigError(f"{text!r} is no disk.", hint="Write it like xfs:4G or ext4:8G.")
    return match.group(1), int(match.group(2))


def _environment(file_system: str | None) -> dict[str, str]:
    """Ours, with the project's own programs first, and a store that is the lab's."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAMET_HOME")}
    env["PATH"] = f"{Path(sys.prefix) / 'bin'}:{env.get('PATH', '/usr/sbin:/usr/bin:/sbin:/bin')}"
    env["RAMET_LAB"] = "1"
    env.setdefault("OPENSSL_ia32cap", SCALAR_SHA256)
    if file_system:
        env["RAMET_HOME"] = str(machine.DISK_MOUNT / "home")
    return env


def _invoke() -> int:
    try:
        with cli.make_context("python -m lab", sys.argv[1:]) as ctx:
            status: int = cli.invoke(ctx)
            return status
    finally:
        signals.over()


def main() -> int:
    """Run, and say in one line what went wrong."""
    signals.install()
    try:
        return _invoke()
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as err:
        err.show()
        return NOT_RUN_STATUS
    except GuestRefusedError as err:
        click.echo(f"lab: {err.message}", err=True)
        return cli_exec.NOT_FOUND_STATUS if err.errno == 2 else cli_exec.NOT_EXECUTABLE_STATUS
    except RametError as err:
        click.echo(f"lab: {err.message}" + (f"\n{err.hint}" if err.hint else ""), err=True)
        return NOT_RUN_STATUS
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), terminal.STDOUT)  # nobody reads: not the interpreter's flush either
        return BROKEN_PIPE_STATUS
    except KeyboardInterrupt:
        click.echo("lab: interrupted", err=True)
        return 130


if __name__ == "__main__":
    sys.exit(main())
