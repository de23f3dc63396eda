"""Guard any files, of any system, while something runs: what changed, which pages, and who had them open for writing.

Nothing here knows of instances: it is for people who have snapshots of their own.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ramet.errors import ConfigError, ConflictError, host_errors
from ramet.verify import evidence
from ramet.verify.checks import Verdict
from ramet.verify.entries import Entries, Entry, Kind, compare_entries, entries_of, kind_of
from ramet.verify.fingerprints import Examined, at_once, differences, examine
from ramet.verify.watch import Holder, Inode, Watch, holders

Say = Callable[[str], None]
EXIT_STATUSES = {Verdict.PASS: 0, Verdict.FAIL: 1, Verdict.INCONCLUSIVE: 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What became of one guarded entry."""

    path: Path
    kind: Kind
    """What it was, or is if it is new."""
    differences: tuple[str, ...]
    """In words; of a file whose blocks moved, or that was written with the bytes that it had, that alone."""
    pages: tuple[range, ...] = ()
    """The pages whose content is another one now, by number (4 KiB each)."""
    writers: tuple[str, ...] = ()
    held_by: tuple[str, ...] = ()
    """Who can write to it still, and how; not who could before the block, where that was allowed."""
    is_new: bool = False
    is_gone: bool = False
    harmless: bool = False
    """Its content, inode, size, mode, owner, links and extended attributes are as they were."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardReport:
    """What a guard found."""

    paths: tuple[Path, ...]
    kinds: Counter[Kind]
    """How many entries of each kind there were."""
    total_bytes: int
    """Of the files."""
    not_read: tuple[Path, ...]
    """Sockets, FIFOs and devices: their kind, mode, owner and presence were compared."""
    changes: tuple[Change, ...]
    undecided: str | None
    """Why it is not known whether files stay as they are; None if nobody whom we may look at can write to one."""
    writers_unseen: str | None
    """Why some who wrote, or could have, may have been missed; None if none was."""
    seconds: float
    """From the first fingerprint to the last."""

    @property
    def files(self) -> int:
        """How many files there were."""
        return self.kinds[Kind.FILE]

    @property
    def verdict(self) -> Verdict:
        """INCONCLUSIVE: what was compared is as it was, and may not stay so."""
        if not all(change.harmless for change in self.changes):
            return Verdict.FAIL
        return Verdict.PASS if self.undecided is None else Verdict.INCONCLUSIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a guard found, how the command that it was set for ended, and what they come to."""

    report: GuardReport
    command: tuple[str, ...]
    status: int
    """Minus the signal that ended it."""
    still_running: tuple[str, ...]
    """Processes of the command, by name and pid."""
    hidden: int
    """How many of them we may not look at."""

    @property
    def verdict(self) -> Verdict:
        """That of the report; what a failed command left as it was is no PASS, nor what somebody may have open for writing."""
        found = self.report.verdict
        if found is Verdict.PASS and (self.status or self.hidden):
            return Verdict.INCONCLUSIVE
        return found

    @property
    def reason(self) -> str | None:
        """Why it is INCONCLUSIVE; None if it is not."""
        if self.verdict is not Verdict.INCONCLUSIVE:
            return None
        how = f"ended with status {self.status}" if self.status >= 0 else f"was ended by signal {-self.status}"
        reasons = [
            self.report.undecided,
            f"what {self.hidden} of the processes that still run can write to may not be looked at"
            if self.hidden
            else None,
            f"the command {how}" if self.status else None,
        ]
        return " and ".join(filter(None, reasons))

    @property
    def exit_status(self) -> int:
        """As documented in docs/cli.md."""
        return EXIT_STATUSES[self.verdict]


@dataclass(slots=True, kw_only=True)
class Guard:
    """Files under guard; ``report`` is there when the block of ``guarding`` has ended."""

    report: GuardReport | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What there was at one time."""

    entries: Entries
    files: dict[Path, Examined]


@contextmanager
def guarding(paths: Sequence[Path], *, allow_writers: bool = False, on_progress: Say | None = None) -> Iterator[Guard]:
    """Fingerprint files and trees, let the block run, and fingerprint them again. An exception of the block goes through, and the
    files are not looked at again then.

    Every entry of a tree is guarded, the directories too, and new ones are changes. Symlinks in it are not followed, but where
    they point is guarded. Sockets, FIFOs and devices are not read.

    Raises:
        ConfigError: for a path that is not there, or is neither a file nor a directory, and for trees without a file.
        ConflictError: if a process has a guarded file open for writing already, unless ``allow_writers``.
        HostError: if an entry cannot be read before the block; after it, that is a change.
    """
    say = on_progress or (lambda text: None)
    began = time.monotonic()
    roots = tuple(path.absolute() for path in paths)
    _check(roots)
    entries = entries_of(roots)
    files = _files(entries)
    if not files and not any(entry.kind is Kind.SYMLINK for entry in entries.found.values()):
        raise ConfigError(
            f"There is no file in {', '.join(map(str, roots))}.", hint="Name files, or directories of files."
        )
    with host_errors("look who has the files open"):
        identities = evidence.identify(files)
        allowed = holders(identities)
    if not allow_writers:
        _require_no_writer(allowed)
    say(f"taking the fingerprints of {_count(len(files))}")
    before = _look(entries)
    guard = Guard()
    with Watch(identities, _directories_to_watch(entries)) as watch:
        yield guard
    say(f"taking the fingerprints of {_count(len(files))} again")
    after = _look(entries_of(roots, again=True), again=True)
    changes = tuple(_changes(before, after, watch, {(one.pid, one.inode) for one in allowed}))
    guard.report = GuardReport(
        paths=roots,
        kinds=Counter(entry.kind for entry in entries.found.values()),
        total_bytes=sum(one.fingerprint.size_bytes for one in before.files.values()),
        not_read=tuple(path for path, entry in entries.found.items() if not entry.kind.is_read),
        changes=changes,
        undecided=_why_undecided(watch, changes),
        writers_unseen=_why_unseen(watch, changes),
        seconds=time.monotonic() - began,
    )


def _count(files: int) -> str:
    return "one file" if files == 1 else f"{files} files"


def _check(roots: Sequence[Path]) -> None:
    if not roots:
        raise ConfigError("There is nothing to guard.", hint="Name files or directories.")
    for path in roots:
        try:
            kind = kind_of(path.lstat().st_mode)
        except OSError as err:
            raise ConfigError(f"{path} cannot be guarded: {err.strerror}.") from err
        if kind not in (Kind.FILE, Kind.DIRECTORY):
            raise ConfigError(
                f"{path} cannot be guarded: it is a {kind}, not a file or a directory.",
                hint=_what_to_name(path) if kind is Kind.SYMLINK else None,
            )


def _what_to_name(link: Path) -> str:
    try:
        return f"Name what it points to: {link.resolve(strict=True)}"
    except (OSError, RuntimeError):  # RuntimeError: a loop, before Python 3.13
        return f"It points to {os.fspath(link.readlink())}, which is not there."


def _files(entries: Entries) -> list[Path]:
    return [path for path, entry in entries.found.items() if entry.kind is Kind.FILE]


def _directories_to_watch(entries: Entries) -> list[Path]:
    """Those of the trees, and those that hold the other files: what replaces a file was written under another name."""
    found: dict[Path, None] = {}
    for path, entry in entries.found.items():
        found[path if entry.kind is Kind.DIRECTORY else path.parent] = None
    return list(found)


def _require_no_writer(found: Sequence[Holder]) -> None:
    """A baseline of a file that somebody writes meanwhile would be worth nothing."""
    for one in found:
        raise ConflictError(
            f"{one.path} is open for writing already: {one}.",
            hint="End that first, or add --allow-writers: a change is then seen, whoever makes it.",
        )


def _look(entries: Entries, *, again: bool = False) -> _Seen:
    """Several files at a time. One that vanishes meanwhile is taken out of ``entries``."""

    def take(path: Path, stop: threading.Event) -> Examined | str | None:
        with host_errors(f"read {path}"):
            try:
                return examine(path, with_pages=True, with_blocks=True, stop=stop)
            except FileNotFoundError:
                return None
            except OSError as err:
                if not again:
                    raise
                return err.strerror or str(err)

    paths = _files(entries)
    files: dict[Path, Examined] = {}
    for path, one in zip(paths, at_once(take, paths), strict=True):
        if isinstance(one, Examined):
            files[path] = one
        elif one is not None:
            entries.unreadable[path] = one
        else:
            del entries.found[path]
    return _Seen(entries=entries, files=files)


def _changes(before: _Seen, after: _Seen, watch: Watch, allowed: set[tuple[int, Inode]]) -> Iterator[Change]:
    for path, was in before.entries.found.items():
        now = after.entries.found.get(path)
        told = after.entries.why_unreadable(path)
        if told is not None:
            found = [f"it cannot be read any more: {told}", *(compare_entries(was, now) if now else ())]
            change = Change(path=path, kind=was.kind, differences=tuple(found))
        elif now is None:
            what = "it is gone" if was.target is None else f"it pointed to {was.target}, and is gone"
            # No writers: a file that was made since may have its inode's number now.
            change = Change(path=path, kind=was.kind, differences=(what,), is_gone=True)
        else:
            change = _compare(path, was, now, (before.files.get(path), after.files.get(path)), watch)
            strange = [one for one in _held(after.files.get(path), watch) if (one.pid, one.inode) not in allowed]
            change = replace(change, held_by=tuple(map(str, strange)))
        if change.differences:
            yield change
    was_called = {_inode(one): path for path, one in before.files.items()}
    for path in sorted(after.entries.found.keys() - before.entries.found.keys()):
        made = after.files.get(path)
        by = watch.writers_of(_inode(made)) if made is not None else ()
        old = was_called.get(_inode(made)) if made is not None and not by else None
        entry = after.entries.found[path]
        what = "it is new" if entry.kind is Kind.FILE else f"it is new: a {entry.kind}"
        if old is not None:
            what = f"it is new: {old} was renamed, or has this name too"
        elif entry.target is not None:
            what = f"it is new: a symlink to {entry.target}"
        yield Change(path=path, kind=entry.kind, differences=(what,), writers=by, is_new=True)


def _compare(
    path: Path, was: Entry, now: Entry, files: tuple[Examined | None, Examined | None], watch: Watch
) -> Change:
    """What became of an entry that is there still; ``files`` are what was read of it, before and after, where it was a file."""
    found = compare_entries(was, now)
    old, new = files
    if old is None or new is None:
        return Change(path=path, kind=was.kind, differences=tuple(found))
    found = differences(old.fingerprint, new.fingerprint) + found
    assert old.pages is not None
    assert new.pages is not None
    pages = old.pages.differing(new.pages)
    harmless = not found
    if harmless and old.status.st_mtime_ns != new.status.st_mtime_ns:
        found.append("it was written or touched, and has the bytes that it had")
    if harmless and old.blocks != new.blocks and None not in (old.blocks, new.blocks):
        found.append("its blocks lie elsewhere on the disk")
    found += [f"it is open for writing still: {one}" for one in _held(new, watch)]
    by = watch.writers_of(_inode(new))
    return Change(path=path, kind=was.kind, differences=tuple(found), pages=tuple(pages), writers=by, harmless=harmless)


def _held(now: Examined | None, watch: Watch) -> list[Holder]:
    return [one for one in watch.holders or () if now is not None and one.inode == _inode(now)]


def _inode(examined: Examined) -> Inode:
    return examined.fingerprint.dev, examined.fingerprint.ino


def _why_undecided(watch: Watch, changes: Sequence[Change]) -> str | None:
    if watch.holders is None:
        return "who can write to them still is not known"
    held = sum(bool(change.held_by) for change in changes)
    if not held:
        return None
    return "one is open for writing still" if held == 1 else f"{held} are open for writing still"


def _why_unseen(watch: Watch, changes: Sequence[Change]) -> str | None:
    why = list(watch.why_unseen)
    if any(one.kind is Kind.FILE and one.differences == ("it is new",) and not one.writers for one in changes):
        why.append("files came from directories that nobody watched")
    return "; ".join(why) or None
