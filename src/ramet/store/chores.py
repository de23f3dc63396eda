"""Chores: what the next command has to do for one that was killed.

A command that is about to make something which, half made, nothing else would lead to, notes it first: in a file under ``locks/``
that it keeps locked while it works, and unlinks when it has ended, well or not. A chore that is there and not locked is one whose
command was killed. Its unlinking is what makes a command's work final.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path

from ramet.errors import NoSpaceError, host_errors
from ramet.linux import ofdlock, whole
from ramet.signals import signals_held
from ramet.store import atomic
from ramet.store.layout import is_id

log = logging.getLogger("ramet.store")
PREFIX = "chore-"


class Kind(StrEnum):
    """What is to be done with the object of an id."""

    COLLECT = "collect"
    """A snapshot: it goes if nothing refers to it."""
    REMOVE = "remove"
    """An instance: it was not whole yet, or not any more."""
    SETTLE = "settle"
    """An instance: a verb on it was cut short that others would notice, by a name that it had taken."""


class Chore:
    """One that this process has noted."""

    def __init__(self, path: Path, fd: int) -> None:
        self._path = path
        self._fd = fd
        self._noted: set[tuple[Kind, str]] = set()
        self.stays = False
        """Whether it is left for the next command, though the block ends well."""

    def add(self, kind: Kind, *ids: str | None) -> None:
        """Note more.

        Raises:
            HostError: if it cannot be written.
        """
        data = "".join(f"{kind} {one}\n" for one in filter(None, ids)).encode()
        with host_errors(f"note in {self._path} what to do if this is killed"):
            whole.write(self._fd, data)
        self._noted |= {(kind, one) for one in ids if one}

    def leave(self, kind: Kind, one: str) -> None:
        """Leave this to the next command, with all else that is noted here.

        Raises:
            HostError: if it was not noted yet, and cannot be.
        """
        if (kind, one) not in self._noted:
            self.add(kind, one)
        self.stays = True


@contextmanager
def noted(locks_dir: Path, kind: Kind, *ids: str | None, durable: bool = False) -> Iterator[Chore]:
    """Keep a chore for the block. ``durable``: when this returns, a power cut does not bring it back.

    Raises:
        HostError: if it cannot be written; the block was not begun.
    """
    with host_errors(f"note in {locks_dir} what to do if this is killed"), signals_held():
        path, fd = _create(locks_dir)
    chore = Chore(path, fd)
    try:
        try:
            chore.add(kind, *ids)
            yield chore
        finally:
            with signals_held():
                if not chore.stays:
                    with host_errors(f"take {path} away"):
                        path.unlink(missing_ok=True)
                if durable:
                    _make_durable(locks_dir)
    finally:
        os.close(fd)


def _make_durable(locks_dir: Path) -> None:
    """What was done is done, and is no failure for that its chore may come back."""
    try:
        atomic.fsync_directory(locks_dir)
    except OSError as err:
        log.warning(
            "the disk does not say that %s is safe (%s): after a power cut, what was just made may be taken for "
            "half-made, and removed",
            locks_dir,
            err.strerror,
        )


@contextmanager
def noted_if_there_is_room(locks_dir: Path, kind: Kind, *ids: str | None) -> Iterator[Chore | None]:
    """The same for what makes room, which a full disk must not keep from it: then there is none. If the block fails, the chore
    stays, and the next command tries to end it.
    """
    with ExitStack() as held:
        path, chore = None, None
        try:
            with host_errors("note what to do if this is killed"), signals_held():
                path, fd = _create(locks_dir)
                held.callback(os.close, fd)
            noting = Chore(path, fd)
            noting.add(kind, *ids)
            chore = noting
        except NoSpaceError:
            log.info("no room to note a chore; going on without")
        yield chore
        if path is not None and not (chore is not None and chore.stays):
            path.unlink(missing_ok=True)


def _create(locks_dir: Path) -> tuple[Path, int]:
    """An empty file of our own, locked. Whoever finds it before it is locked takes it for one that has nothing to say."""
    while True:
        path = locks_dir / f"{PREFIX}{secrets.token_hex(6)}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        if ofdlock.try_lock(fd) and _is_at(fd, path):
            return path, fd
        os.close(fd)


@contextmanager
def abandoned(path: Path) -> Iterator[list[tuple[Kind, str]]]:
    """What is to be done, of a chore whose command was killed; nothing if it is at work, or has ended meanwhile. What the block
    leaves in the list stays noted, and all of it if the block fails.
    """
    try:  # never made anew: one that has ended in order would be there again, and free
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        yield []
        return
    try:
        if not (ofdlock.try_lock(fd) and _is_at(fd, path)):
            yield []
            return
        todo = list(_read(path))
        count = len(todo)
        yield todo
        if 0 < len(todo) < count:
            _note_again(path.parent, todo)
        if not todo or len(todo) < count:
            path.unlink(missing_ok=True)
    finally:
        os.close(fd)


def _note_again(locks_dir: Path, todo: Sequence[tuple[Kind, str]]) -> None:
    """In a file of its own, which is nobody's: whatever cuts this short, what is to be done is noted somewhere."""
    path, fd = _create(locks_dir)
    try:
        for kind, one in todo:
            Chore(path, fd).add(kind, one)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


def noted_ids(locks_dir: Path) -> set[str]:
    """All that a command is at work on now, or that was killed: it is seen to.

    Raises:
        HostError: if a chore cannot be read: what it names is not known.
    """
    with host_errors(f"read in {locks_dir} what other commands are at work on"):
        while True:
            found: set[str] = set()
            has_ended = False
            for path in locks_dir.glob(f"{PREFIX}*"):
                try:
                    found |= {one for _, one in _read(path)}
                except FileNotFoundError:
                    if path.is_symlink():
                        raise  # to nowhere: it is not ours, and stays
                    has_ended = True
            if not has_ended:
                return found
            # What is left of one that has ended may be noted in another file by now, which was not listed.


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False


def _read(path: Path) -> Iterator[tuple[Kind, str]]:
    for line in path.read_bytes().decode("ascii", errors="replace").splitlines():
        kind, _, one = line.partition(" ")
        if kind in list(Kind) and is_id(one):
            yield Kind(kind), one
        else:
            log.warning("%s: %r is no chore", path, line)
