"""ramet guard"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ramet.cli import output, report_files
from ramet.cli.context import App, Verb, verb
from ramet.cli.failures import could_not_run, visible
from ramet.errors import ConfigError, host_errors
from ramet.pages import in_words

if TYPE_CHECKING:
    from ramet.verify.guard import Change, GuardReport, Outcome

COMMAND = "ramet.command"
STDERR = 2
INDENT = 4
SHOWN_MAX = 20
"""Changes that are printed, and lines of one kind in each: a tree that is gone must not bury the rest."""


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
@report_files.option("--output", "report_path", "the report, as JSON,")
@could_not_run()
def guard(app: App, paths: tuple[Path, ...], allow_writers: bool, report_path: Path | None) -> int:
    """Run a command and say which of your files it changed.

    For snapshots, images or disks of any system: before and after COMMAND each file (in directories: each file below)
    is fingerprinted (inode, size, SHA-256, mode, links, owner, extended attributes, extents, pages), and in directories
    every other entry too (kind, mode, owner, extended attributes, where a symlink points). The report, on stderr, names
    what changed, which 4 KiB pages, and who had it open for writing meanwhile. Status 0: nothing changed. 1: something
    did. 2: nothing did, but COMMAND failed or left a process that can write to one of the files, or it could not run.
    With --json: an object on stdout, and COMMAND's stdout goes to stderr.
    """
    return _guard(app, paths, tuple(click.get_current_context().meta[COMMAND]), allow_writers, report_path)


def _guard(
    app: App, paths: tuple[Path, ...], command: tuple[str, ...], allow_writers: bool, report_path: Path | None
) -> int:
    from ramet.cli import foreground
    from ramet.verify import evidence
    from ramet.verify.guard import Outcome, guarding
    from ramet.verify.reports import conversion
    from ramet.verify.watch import name_of

    if not command:
        raise ConfigError("There is no command to run.", hint="Write it after --: ramet guard PATH -- make test")
    if shutil.which(command[0]) is None:
        raise ConfigError(f"There is no program {command[0]!r} that could be run.")
    _require_outside(report_path, paths)
    if report_path is not None:
        report_files.check({"--output": report_path})
    say = output.error_line if app.debug else None
    with foreground.adopting_orphans() as left_behind:
        with guarding(paths, allow_writers=allow_writers, on_progress=say) as watched:
            status = foreground.run(command, stdout=STDERR if app.json else None)
        left = left_behind()
        still_running, hidden = tuple(map(name_of, left)), evidence.hidden_processes(left)
    assert watched.report is not None
    outcome = Outcome(report=watched.report, command=command, status=status, still_running=still_running, hidden=hidden)
    encoded = conversion.encode(outcome)
    if app.json:
        output.raw(encoded)
    else:
        for text in _lines(outcome):
            output.error_line(text)
    if report_path is not None:  # last: it was said, whatever comes of the file
        with host_errors(f"write {report_path}"):
            report_path.write_bytes(encoded)
    return outcome.exit_status


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


# -- in words -----------------------------------------------------------------------------------------------------


def _lines(outcome: Outcome) -> list[str]:
    report = outcome.report
    found = _found(report)
    ended = output.duration(report.seconds)
    if outcome.reason is not None:
        found += f", but {outcome.reason}"
    if outcome.reason is None or not outcome.status:
        ended = f"{_ended(outcome.status)}, {ended}"
    lines = [f"{output.coloured(outcome.verdict.value)}  {found}: {visible(shlex.join(outcome.command))} ({ended})"]
    by_weight = sorted(report.changes, key=lambda change: change.harmless)  # what passes comes last
    for change in by_weight[:SHOWN_MAX]:
        lines += ["", visible(str(change.path)), *(" " * INDENT + visible(text) for text in _about(change))]
    if len(by_weight) > SHOWN_MAX:
        lines += ["", f"… and {len(by_weight) - SHOWN_MAX} more: --json and --output have them all."]
    return lines + [text for note in _notes(outcome) for text in ("", visible(note))]


def _ended(status: int) -> str:
    return f"status {status}" if status >= 0 else f"ended by signal {-status}"


def _found(report: GuardReport) -> str:
    """``1 of 3 files (12 KiB) changed``; ``1 new, 6 gone, of 5 files (8 KiB), 1 symlink and 1 directory``."""
    from ramet.verify.entries import Kind

    harmful = [change for change in report.changes if not change.harmless]
    files = f"{_count(report.files, 'file')} ({output.size(report.total_bytes)})"
    others = [
        _count(report.kinds[kind], word, words)
        for kind, word, words in ((Kind.SYMLINK, "symlink", None), (Kind.DIRECTORY, "directory", "directories"))
        if report.kinds[kind]
    ]
    others += [_count(len(report.not_read), "other entry", "other entries")] if report.not_read else []
    covered = ", ".join([files, *others[:-1]]) + (f" and {others[-1]}" if others else "")
    if not harmful:
        return f"{covered} {'is as it was' if report.kinds.total() == 1 else 'are as they were'}"
    if all(change.kind is Kind.FILE and not change.is_new and not change.is_gone for change in harmful):
        return f"{len(harmful)} of {files} changed"
    new, gone = sum(change.is_new for change in harmful), sum(change.is_gone for change in harmful)
    parts = ((len(harmful) - new - gone, "changed"), (new, "new"), (gone, "gone"))
    return ", ".join(f"{count} {word}" for count, word in parts if count) + f", of {covered}"


def _count(number: int, word: str, words: str | None = None) -> str:
    return f"{number} {word if number == 1 else words or word + 's'}"


def _about(change: Change) -> list[str]:
    pages = [in_words(change.pages)] if change.pages else []
    return [*_first(change.differences), *pages, *_first(change.writers)]


def _notes(outcome: Outcome) -> list[str]:
    report, notes = outcome.report, []
    if report.not_read:
        what = (
            "entry is no regular file and was" if len(report.not_read) == 1 else "entries are no regular files and were"
        )
        notes.append(f"{len(report.not_read)} {what} not read: {', '.join(_first(list(map(str, report.not_read))))}.")
    if outcome.still_running:
        count = _count(len(outcome.still_running), "process", "processes")
        runs, they, do = ("runs", "it", "does") if len(outcome.still_running) == 1 else ("run", "they", "do")
        names = ", ".join(_first(outcome.still_running))
        notes.append(f"{count} of the command still {runs}: what {they} {do} from now on is not seen: {names}.")
    if report.writers_unseen:
        notes.append(f"Some who wrote, or could have, may have been missed: {report.writers_unseen}.")
    return notes


def _first(texts: Sequence[str]) -> list[str]:
    more = [f"… and {len(texts) - SHOWN_MAX} more"] if len(texts) > SHOWN_MAX else []
    return [*texts[:SHOWN_MAX], *more]
