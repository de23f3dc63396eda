"""ramet guard"""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ramet.cli import output
from ramet.cli.context import App, Verb, verb
from ramet.cli.failures import visible
from ramet.errors import ConfigError, RametError, host_errors

if TYPE_CHECKING:
    from ramet.verify.guard import GuardReport
    from ramet.verify.reports.documents import GuardDocument

COMMAND = "ramet.command"
CHANGED_STATUS, FAILED_STATUS = 1, 2
STDERR = 2
INDENT = 4


class GuardVerb(Verb):
    """Everything after the first ``--`` is the command, options of its own included."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        ctx.meta[COMMAND] = args[end + 1 :]
        return super().parse_args(ctx, args[:end])


@verb(
    "guard",
    cls=GuardVerb,
    examples=[
        "ramet guard /srv/snapshots -- ./restore-and-run.sh",
        "ramet guard base.mem base.disk --output report.json -- pytest tests/",
    ],
)
@click.argument(
    "paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PATH... -- COMMAND [ARG]..."
)
@click.option("--allow-writers", is_flag=True, help="Begin although a process has one of the files open for writing.")
@click.option(
    "--output",
    "report_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also write the report there, as JSON.",
)
def guard(app: App, paths: tuple[Path, ...], allow_writers: bool, report_path: Path | None) -> int:
    """Run a command and say which of your files it changed.

    For snapshots, images or disks of any system: before and after COMMAND each file (in directories: each file below)
    is fingerprinted (inode, size, SHA-256, mode, links, owner, extents, pages). The report, on stderr, names what changed,
    which 4 KiB pages, and who had it open for writing meanwhile. Status 0: nothing changed. 1: something did. 2: nothing
    did, but COMMAND failed, or it could not run. With --json: an object on stdout, and COMMAND's stdout goes to stderr.
    """
    try:
        return _guard(app, paths, tuple(click.get_current_context().meta[COMMAND]), allow_writers, report_path)
    except RametError as err:
        err.exit_status = FAILED_STATUS
        raise


def _guard(
    app: App, paths: tuple[Path, ...], command: tuple[str, ...], allow_writers: bool, report_path: Path | None
) -> int:
    from ramet import foreground
    from ramet.verify.guard import guarding
    from ramet.verify.reports import documents

    if not command:
        raise ConfigError("There is no command to run.", hint="Write it after --: ramet guard PATH -- make test")
    if shutil.which(command[0]) is None:
        raise ConfigError(f"There is no program {command[0]!r} that could be run.")
    if report_path is not None and not report_path.absolute().parent.is_dir():
        raise ConfigError(f"There is no directory {report_path.absolute().parent} for --output.")
    _require_outside(report_path, paths)
    say = output.error_line if app.debug else None
    with guarding(paths, allow_writers=allow_writers, on_progress=say) as watched:
        status = foreground.run(command, stdout=STDERR if app.json else None)
    assert watched.report is not None
    exit_status = _exit_status(watched.report, status)
    encoded = documents.encoded(_document(watched.report, command, status, exit_status))
    if app.json:
        output.raw(encoded)
    else:
        for text in _lines(watched.report, command, status):
            output.error_line(text)
    if report_path is not None:  # last: it was said, whatever comes of the file
        with host_errors(f"write {report_path}"):
            report_path.write_bytes(encoded)
    return exit_status


def _require_outside(report_path: Path | None, paths: tuple[Path, ...]) -> None:
    """The report must not be written over what it is about.

    Raises:
        ConfigError: if it would be, by whatever name, or would lie in a guarded directory.
    """
    if report_path is None:
        return
    target = report_path.resolve()
    for path in paths:
        guarded = path.resolve()
        if target.is_relative_to(guarded) or (target.exists() and guarded.exists() and target.samefile(guarded)):
            raise ConfigError(
                f"--output {report_path} is in {path}, which is guarded.", hint="Write the report elsewhere."
            )
    if target.is_file() and target.stat().st_nlink > 1:
        raise ConfigError(
            f"--output {report_path} has more than one name, and one of them may be guarded.",
            hint="Name a new file for the report.",
        )


def _exit_status(report: GuardReport, status: int) -> int:
    if report.verdict.value == "FAIL":
        return CHANGED_STATUS
    return FAILED_STATUS if status else 0


def _document(report: GuardReport, command: tuple[str, ...], status: int, exit_status: int) -> GuardDocument:
    from ramet.verify.reports.documents import ChangeDocument, CommandDocument, GuardDocument

    return GuardDocument(
        verdict=report.verdict.value,
        exit_status=exit_status,
        command=CommandDocument(
            argv=command, status=status if status >= 0 else None, signal=-status if status < 0 else None
        ),
        paths=tuple(str(path) for path in report.paths),
        files=report.files,
        bytes=report.total_bytes,
        seconds=round(report.seconds, 3),
        writers_unseen=report.writers_unseen,
        changes=tuple(
            ChangeDocument(
                path=str(change.path),
                harmless=change.harmless,
                is_new=change.is_new,
                differences=change.differences,
                pages=tuple((pages.start, pages.stop - 1) for pages in change.pages),
                writers=change.writers,
            )
            for change in report.changes
        ),
    )


def _lines(report: GuardReport, command: tuple[str, ...], status: int) -> list[str]:
    from ramet.snapshots.sums import in_words

    ended = f"status {status}" if status >= 0 else f"ended by signal {-status}"
    new = sum(change.is_new for change in report.changes)
    changed = sum(not change.harmless for change in report.changes) - new
    many = report.files != 1
    files = f"{report.files} file{'s' if many else ''} ({output.size(report.total_bytes)})"
    found = (
        f"{changed} of {files} changed"
        if changed or new
        else f"{files} {'are as they were' if many else 'is as it was'}"
    )
    found += f", {new} new" if new else ""
    verdict = output.coloured(report.verdict.value)
    lines = [f"{verdict}  {found}: {visible(shlex.join(command))} ({ended}, {output.duration(report.seconds)})"]
    for change in report.changes:
        about = [*change.differences, *([in_words(change.pages)] if change.pages else []), *change.writers]
        lines += ["", visible(str(change.path)), *(" " * INDENT + visible(text) for text in about)]
    if report.writers_unseen:
        lines += ["", f"Some who wrote, or could have, may have been missed: {report.writers_unseen}."]
    return lines
