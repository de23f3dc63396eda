"""Guard any files, of any system, while something runs: what changed, which pages, and who had them open for writing.

Nothing here knows of instances: it is for people who have snapshots of their own.
"""

from __future__ import annotations

import os
import select
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ramet.errors import ConfigError, ConflictError, host_errors
from ramet.linux import extents, fanotify, procfs
from ramet.verify import evidence
from ramet.verify.checks import Verdict
from ramet.verify.fingerprints import Fingerprint, PageDigests, differences, fingerprint, page_digests

Say = Callable[[str], None]
POLL_S = 0.1
WATCHED = fanotify.FAN_OPEN | fanotify.FAN_MODIFY | fanotify.FAN_CLOSE_WRITE
WROTE = "wrote to it"
COULD_WRITE = "had it open for writing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarded:
    """A file as it was or is."""

    fingerprint: Fingerprint
    owner: tuple[int, int]
    mtime_ns: int
    blocks: tuple[tuple[int, int, int], ...] | None
    """(logical, physical, length) of its extents, in bytes; None where the file system cannot tell."""
    pages: PageDigests


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
    """Why those who wrote may have been missed; None if none was."""
    seconds: float
    """From the first fingerprint to the last."""

    @property
    def verdict(self) -> Verdict:
        return Verdict.PASS if all(change.harmless for change in self.changes) else Verdict.FAIL


@dataclass(slots=True, kw_only=True)
class Guard:
    """Files under guard; ``report`` is there when the block of ``guarding`` has ended."""

    files: dict[Path, Guarded]
    report: GuardReport | None = None


@contextmanager
def guarding(paths: Sequence[Path], *, allow_writers: bool = False, on_progress: Say | None = None) -> Iterator[Guard]:
    """Fingerprint files and trees, let the block run, and fingerprint them again. An exception of the block goes through, and the
    files are not looked at again then.

    Symlinks in a tree are not followed. New files in a guarded tree are changes too.

    Raises:
        ConfigError: for a path that is not there, or is neither a file nor a directory.
        ConflictError: if a process has a guarded file open for writing already, unless ``allow_writers``.
        HostError: if a file cannot be read.
    """
    say = on_progress or (lambda text: None)
    began = time.monotonic()
    roots = tuple(path.absolute() for path in paths)
    _check(roots)
    found = _files(roots)
    if not allow_writers:
        _require_no_writer(found)
    say(f"taking the fingerprints of {_count(len(found))}")
    before = _look(found)
    guard = Guard(files=before)
    with _Watch(before, roots) as watch:
        yield guard
    say(f"taking the fingerprints of {_count(len(before))} again")
    after = _look(_files(roots, vanished_is_fine=True))
    guard.report = GuardReport(
        paths=roots,
        files=len(before),
        total_bytes=sum(one.fingerprint.size_bytes for one in before.values()),
        changes=tuple(_changes(before, after, watch.writers)),
        writers_unseen=watch.why_unseen,
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


def _files(roots: Sequence[Path], *, vanished_is_fine: bool = False) -> list[Path]:
    """The regular files among and under ``roots``, each once, in order."""
    found: dict[Path, None] = {}
    for root in roots:
        if not root.is_dir():
            if root.is_file() and not root.is_symlink():
                found[root] = None
            continue
        for directory, subdirectories, names in os.walk(root, onerror=None if vanished_is_fine else _raise):
            subdirectories.sort()
            for name in sorted(names):
                path = Path(directory, name)
                if path.is_file() and not path.is_symlink():
                    found[path] = None
    return list(found)


def _directories(roots: Sequence[Path]) -> list[Path]:
    return [Path(directory) for root in roots if root.is_dir() for directory, _, _ in os.walk(root)]


def _raise(err: OSError) -> None:
    with host_errors(f"read {err.filename}"):
        raise err


def _require_no_writer(paths: Sequence[Path]) -> None:
    """A baseline of a file that somebody writes meanwhile would be worth nothing."""
    files = evidence.identify(paths)
    for pid in evidence.processes():
        for one in evidence.reach(pid, files):
            if one.can_write:
                raise ConflictError(
                    f"{one.file.path} is open for writing already: {one.how} of {_name_of(pid)}.",
                    hint="End that first, or add --allow-writers: a change is then seen, whoever makes it.",
                )


def _look(paths: Sequence[Path]) -> dict[Path, Guarded]:
    """Several files at a time. One that vanishes meanwhile is left out."""
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as workers:
        found = zip(paths, workers.map(_look_at, paths), strict=True)
        return {path: one for path, one in found if one is not None}


def _look_at(path: Path) -> Guarded | None:
    with host_errors(f"read {path}"):
        try:
            status = path.lstat()
            blocks = _blocks(path)  # first of all: reading FIEMAP writes back what was delayed
            return Guarded(
                fingerprint=fingerprint(path),
                owner=(status.st_uid, status.st_gid),
                mtime_ns=status.st_mtime_ns,
                blocks=blocks,
                pages=page_digests(path),
            )
        except FileNotFoundError:
            return None


def _blocks(path: Path) -> tuple[tuple[int, int, int], ...] | None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return tuple((one.logical, one.physical, one.length) for one in extents.fiemap(fd))
    except FileNotFoundError:
        raise
    except OSError:
        return None  # tmpfs, for example
    finally:
        os.close(fd)


def _changes(
    before: dict[Path, Guarded], after: dict[Path, Guarded], writers: dict[Path, dict[str, str]]
) -> Iterator[Change]:
    for path, was in before.items():
        now = after.get(path)
        by = tuple(f"{who} {what}" for who, what in sorted(writers.get(path, {}).items()))
        if now is None:
            yield Change(path=path, differences=("it is gone",), pages=(), writers=by, harmless=False)
            continue
        found = differences(was.fingerprint, now.fingerprint)
        if was.owner != now.owner:
            found.append(f"owner {was.owner[0]}:{was.owner[1]} became {now.owner[0]}:{now.owner[1]}")
        pages = was.pages.differing(now.pages)
        harmless = not found
        if harmless and was.mtime_ns != now.mtime_ns:
            found.append("it was written with the bytes that it had")
        if harmless and was.blocks != now.blocks and None not in (was.blocks, now.blocks):
            found.append("its blocks lie elsewhere on the disk")
        if found:
            yield Change(path=path, differences=tuple(found), pages=tuple(pages), writers=by, harmless=harmless)
    for path in after.keys() - before.keys():
        by = tuple(f"{who} {what}" for who, what in sorted(writers.get(path, {}).items()))
        yield Change(path=path, differences=("it is new",), pages=(), writers=by, harmless=False, is_new=True)


def _name_of(pid: int) -> str:
    """``qemu-system-x86 (pid 42)``; the pid alone of a process that is gone."""
    try:
        return f"{Path(f'/proc/{pid}/comm').read_text().strip()} (pid {pid})"
    except OSError:
        return f"a process that has ended (pid {pid})"


class _Watch:
    """Who opens the files for writing meanwhile: from fanotify where that is allowed, else by looking at /proc now and then."""

    def __init__(self, files: dict[Path, Guarded], roots: Sequence[Path]) -> None:
        self.writers: dict[Path, dict[str, str]] = {}
        """By file: who, and the most that is known of them."""
        self.why_unseen: str | None = None
        self._files = evidence.identify(files)
        self._by_inode = {(file.dev, file.ino): file.path for file in self._files}
        self._names: dict[int, str] = {}
        self._group = self._fanotify([*files, *_directories(roots)])
        self._done = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._watch, name="guard", daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.eventfd_write(self._done, 1)
        self._thread.join()
        os.close(self._done)
        if self._group is not None:
            os.close(self._group)

    def _fanotify(self, paths: Sequence[Path]) -> int | None:
        group = None
        try:
            group = fanotify.create()
            for path in paths:
                fanotify.mark(group, path, WATCHED | (fanotify.FAN_EVENT_ON_CHILD if path.is_dir() else 0))
        except OSError as err:
            self.why_unseen = f"no fanotify here ({err.strerror}): looked at /proc every {POLL_S * 1000:g} ms"
            if group is not None:
                os.close(group)
            return None
        return group

    def _watch(self) -> None:
        """At once when something happens: a short-lived process must still have a name."""
        sources = [self._done] if self._group is None else [self._done, self._group]
        while True:
            ready, _, _ = select.select(sources, [], [], POLL_S if self._group is None else None)
            if self._group is not None:
                self._take_events(self._group)
            if self._group is None or self._done in ready:
                self._look_at_processes()
            if self._done in ready:
                return

    def _take_events(self, group: int) -> None:
        for event in fanotify.events(group):
            if event.mask & fanotify.FAN_Q_OVERFLOW:
                self.why_unseen = "there were more events than the kernel keeps"
                continue
            try:
                found = os.fstat(event.fd)
                path = self._by_inode.get((found.st_dev, found.st_ino))
                path = path or Path(f"/proc/self/fd/{event.fd}").readlink()
            finally:
                os.close(event.fd)
            if event.pid == os.getpid():
                continue
            self._names.setdefault(event.pid, _name_of(event.pid))
            if event.mask & fanotify.FAN_MODIFY:
                self._note(path, event.pid, WROTE)
            elif event.mask & fanotify.FAN_CLOSE_WRITE or self._can_write(event.pid, found):
                self._note(path, event.pid, COULD_WRITE)

    def _can_write(self, pid: int, file: os.stat_result) -> bool:
        try:
            opened = procfs.open_descriptors(pid)
        except OSError:
            return False
        return any(one.writable and (one.dev, one.ino) == (file.st_dev, file.st_ino) for one in opened)

    def _look_at_processes(self) -> None:
        for pid in evidence.processes():
            for one in evidence.reach(pid, self._files):
                if one.can_write:
                    self._note(one.file.path, pid, COULD_WRITE)

    def _note(self, path: Path, pid: int, what: str) -> None:
        who = self._names.setdefault(pid, _name_of(pid))
        known = self.writers.setdefault(path, {})
        if known.get(who) != WROTE:
            known[who] = what
