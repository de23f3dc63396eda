"""Guard any files, of any system, while something runs: what changed, which pages, and who had them open for writing.

Nothing here knows of instances: it is for people who have snapshots of their own.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ramet.errors import ConfigError, ConflictError, host_errors
from ramet.verify import evidence
from ramet.verify.checks import Verdict
from ramet.verify.fingerprints import Examined, at_once, differences, examine
from ramet.verify.watch import Inode, Watch, name_of

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What became of one guarded file."""

    path: Path
    differences: tuple[str, ...]
    """In words; of a file whose blocks moved, or that was written with the bytes that it had, that alone."""
    pages: tuple[range, ...]
    """The pages whose content is another one now, by number (4 KiB each)."""
    writers: tuple[str, ...]
    is_new: bool = False
    harmless: bool
    """Its content, inode, size, mode, owner and links are as they were."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardReport:
    """What a guard found."""

    paths: tuple[Path, ...]
    files: int
    total_bytes: int
    changes: tuple[Change, ...]
    writers_unseen: str | None
    """Why some who wrote, or could have, may have been missed; None if none was."""
    seconds: float
    """From the first fingerprint to the last."""

    @property
    def verdict(self) -> Verdict:
        return Verdict.PASS if all(change.harmless for change in self.changes) else Verdict.FAIL


@dataclass(slots=True, kw_only=True)
class Guard:
    """Files under guard; ``report`` is there when the block of ``guarding`` has ended."""

    report: GuardReport | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """The guarded files at one time; ``links`` are symlinks and where they point, ``unreadable`` says why."""

    files: dict[Path, Examined]
    links: dict[Path, str]
    unreadable: dict[Path, str]


@contextmanager
def guarding(paths: Sequence[Path], *, allow_writers: bool = False, on_progress: Say | None = None) -> Iterator[Guard]:
    """Fingerprint files and trees, let the block run, and fingerprint them again. An exception of the block goes through, and the
    files are not looked at again then.

    Symlinks in a tree are not followed, but where they point is guarded. New files in a guarded tree are changes too.

    Raises:
        ConfigError: for a path that is not there, or is neither a file nor a directory, and for trees without a file.
        ConflictError: if a process has a guarded file open for writing already, unless ``allow_writers``.
        HostError: if a file cannot be read before the block; after it, that is a change.
    """
    say = on_progress or (lambda text: None)
    began = time.monotonic()
    roots = tuple(path.absolute() for path in paths)
    _check(roots)
    files, links = _entries(roots)
    if not files and not links:
        raise ConfigError(
            f"There is no file in {', '.join(map(str, roots))}.", hint="Name files, or directories of files."
        )
    with host_errors("look who has the files open"):
        identities = evidence.identify(files)
    if not allow_writers:
        _require_no_writer(identities)
    say(f"taking the fingerprints of {_count(len(files))}")
    before = _look(files, links)
    guard = Guard()
    with Watch(identities, _directories_to_watch(roots)) as watch:
        yield guard
    say(f"taking the fingerprints of {_count(len(files))} again")
    after = _look(*_entries(roots, again=True), again=True)
    changes = tuple(_changes(before, after, watch))
    guard.report = GuardReport(
        paths=roots,
        files=len(before.files),
        total_bytes=sum(one.fingerprint.size_bytes for one in before.files.values()),
        changes=changes,
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
            mode = path.lstat().st_mode
        except OSError as err:
            raise ConfigError(f"{path} cannot be guarded: {err.strerror}.") from err
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise ConfigError(f"{path} cannot be guarded: it is {_kind(mode)}, not a file or a directory.")


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISLNK, "a symlink"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISBLK, "a block device"),
        (stat.S_ISCHR, "a character device"),
    )
    return next((name for test, name in kinds if test(mode)), "something else")


def _entries(roots: Sequence[Path], *, again: bool = False) -> tuple[list[Path], dict[Path, str]]:
    """The regular files and the symlinks among and under ``roots``, each once, in order; ``again``: what is not there is fine.

    Raises:
        HostError: if a directory cannot be read.
    """
    files: dict[Path, None] = {}
    links: dict[Path, str] = {}
    for root in roots:
        found = [root]
        if not root.is_symlink() and root.is_dir():
            walk = os.walk(root, onerror=None if again else _refuse)
            found = [Path(directory, name) for directory, inner, names in walk for name in (*inner, *names)]
        for path in sorted(found):
            try:
                mode = path.lstat().st_mode
                if stat.S_ISLNK(mode):
                    links[path] = str(path.readlink())
                elif stat.S_ISREG(mode):
                    files[path] = None
            except OSError:
                continue  # gone meanwhile, or in a directory that cannot be entered: os.walk has said so
    return list(files), links


def _refuse(err: OSError) -> None:
    with host_errors(f"read {err.filename}"):
        raise err


def _directories_to_watch(roots: Sequence[Path]) -> list[Path]:
    """Those of the trees, and those that hold the other files: what replaces a file was written under another name."""
    found: dict[Path, None] = {}
    for root in roots:
        if root.is_dir():
            found |= {Path(directory): None for directory, _, _ in os.walk(root)}
        else:
            found[root.parent] = None
    return list(found)


def _require_no_writer(files: Sequence[evidence.FileId]) -> None:
    """A baseline of a file that somebody writes meanwhile would be worth nothing."""
    for pid in evidence.processes():
        for one in evidence.reach(pid, files):
            if one.can_write:
                raise ConflictError(
                    f"{one.file.path} is open for writing already: {one.how} of {name_of(pid)}.",
                    hint="End that first, or add --allow-writers: a change is then seen, whoever makes it.",
                )


def _look(files: Sequence[Path], links: dict[Path, str], *, again: bool = False) -> _Seen:
    """Several files at a time. One that vanishes meanwhile is left out."""

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

    found = list(zip(files, at_once(take, files), strict=True))
    return _Seen(
        files={path: one for path, one in found if isinstance(one, Examined)},
        links=links,
        unreadable={path: one for path, one in found if isinstance(one, str)},
    )


def _changes(before: _Seen, after: _Seen, watch: Watch) -> Iterator[Change]:
    for path, was in before.files.items():
        now = after.files.get(path)
        # Not of the inode that it had: a file that was made since may have that number now.
        by = watch.writers_of(_inode(now)) if now is not None else ()
        if now is None:
            told = after.unreadable.get(path)
            what = f"it cannot be read any more: {told}" if told is not None else "it is gone"
            yield Change(path=path, differences=(what,), pages=(), writers=by, harmless=False)
            continue
        change = _compare(path, was, now, by, still_open=watch.still_open(_inode(now)))
        if change is not None:
            yield change
    for path, target in before.links.items():
        now_target = after.links.get(path)
        if now_target != target:
            what = f"it pointed to {target}, and " + ("is gone" if now_target is None else f"points to {now_target}")
            yield Change(path=path, differences=(what,), pages=(), writers=(), harmless=False)
    known = before.files.keys() | before.links.keys()
    was_called = {_inode(one): path for path, one in before.files.items()}
    for path in sorted((after.files.keys() | after.links.keys() | after.unreadable.keys()) - known):
        made = after.files.get(path)
        by = watch.writers_of(_inode(made)) if made is not None else ()
        old = was_called.get(_inode(made)) if made is not None and not by else None
        what = "it is new" if old is None else f"it is new: {old} was renamed, or has this name too"
        yield Change(path=path, differences=(what,), pages=(), writers=by, harmless=False, is_new=True)


def _compare(path: Path, was: Examined, now: Examined, by: tuple[str, ...], *, still_open: bool) -> Change | None:
    found = differences(was.fingerprint, now.fingerprint)
    owners = [(one.status.st_uid, one.status.st_gid) for one in (was, now)]
    if owners[0] != owners[1]:
        found.append("owner {}:{} became {}:{}".format(*owners[0], *owners[1]))
    assert was.pages is not None
    assert now.pages is not None
    pages = was.pages.differing(now.pages)
    harmless = not found
    if harmless and was.status.st_mtime_ns != now.status.st_mtime_ns:
        found.append("it was written or touched, and has the bytes that it had")
    if harmless and was.blocks != now.blocks and None not in (was.blocks, now.blocks):
        found.append("its blocks lie elsewhere on the disk")
    if still_open:
        found.append("it is open for writing still")
    if not found:
        return None
    return Change(path=path, differences=tuple(found), pages=tuple(pages), writers=by, harmless=harmless)


def _inode(examined: Examined) -> Inode:
    return examined.fingerprint.dev, examined.fingerprint.ino


def _why_unseen(watch: Watch, changes: Sequence[Change]) -> str | None:
    why = list(watch.why_unseen)
    if any(change.differences == ("it is new",) and not change.writers for change in changes):
        why.append("files came from directories that nobody watched")
    return "; ".join(why) or None
