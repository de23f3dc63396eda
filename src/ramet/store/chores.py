"""Chores: what the next command has to do for one that was killed, or whose host lost its power.

A command that is about to make something which, half made, nothing else would lead to, notes it first: in the name of a file
under ``locks/`` that it keeps locked while it works, and unlinks when it has ended, well or not. A chore that is there and not
locked is one whose command was killed. Its unlinking is what makes a command's work final.

It is in the name, and the file is empty: journals keep names in the order in which they were made (ext4, XFS), so that whoever
finds, after a power cut, what was made later finds the chore, and nobody waits for a disk to note one.
"""

from __future__ import annotations

import logging
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path

from ramet.errors import NoSpaceError, host_errors
from ramet.linux import ofdlock
from ramet.signals import signals_held
from ramet.store import atomic
from ramet.store.layout import is_id

log = logging.getLogger("ramet.store")
PREFIX = "chore-"
IDS_MAX = 8
"""In one name, which has at most 255 bytes, and 143 on eCryptfs."""
WRITTEN_MAX_BYTES = 1 << 20
ENDED_MODE = 0o700
"""Of a file whose names say nothing any more: all of them are void at once."""


class Kind(StrEnum):
    """What is to be done with the object of an id."""

    COLLECT = "collect"
    """A snapshot: it goes if nothing refers to it."""
    REMOVE = "remove"
    """An instance: it was not whole yet, or not any more."""
    SETTLE = "settle"
    """An instance: a verb on it was cut short that others would notice, by a name that it had taken."""


class Chore:
    """One that this process has noted: one file that it has locked, with a name for every few ids, and one that says nothing."""

    def __init__(self, base: Path, fd: int) -> None:
        self._base = base
        self._fd = fd
        self._names: list[Path] = []

    def add(self, kind: Kind, *ids: str | None) -> None:
        """Note more.

        Raises:
            HostError: if it cannot be noted.
        """
        with host_errors(f"note in {self._base.parent} what to do if this is killed"):
            for name in _named(self._base.name, kind, [one for one in ids if one]):
                path = self._base.with_name(name)
                path.hardlink_to(self._base)
                self._names.append(path)

    def leave(self, kind: Kind, one: str) -> None:
        """Leave this to the next command, though the block ends well: in a file of its own.

        Raises:
            HostError: if it cannot be noted.
        """
        with host_errors(f"note in {self._base.parent} what is left to do"):
            path, fd = _create(self._base.parent)
            try:
                (name,) = _named(path.name, kind, [one])
                path.with_name(name).hardlink_to(path)
            finally:
                path.unlink(missing_ok=True)
                os.close(fd)

    def end(self) -> None:
        """All of it or, if this is killed before its first step, nothing: a fork of many has happened, or has not."""
        if len(self._names) > 1:
            os.fchmod(self._fd, ENDED_MODE)
        for path in (*self._names, self._base):
            path.unlink(missing_ok=True)


def _named(base: str, kind: Kind, ids: Sequence[str]) -> Iterator[str]:
    """The names that note these."""
    for first in range(0, len(ids), IDS_MAX):
        yield "-".join([base, kind, *ids[first : first + IDS_MAX]])


@contextmanager
def noted(locks_dir: Path, kind: Kind, *ids: str | None, durable: bool = False) -> Iterator[Chore]:
    """Keep a chore for the block. ``durable``: when this returns, a power cut does not bring it back.

    Raises:
        HostError: if it cannot be written; the block was not begun.
    """
    with host_errors(f"note in {locks_dir} what to do if this is killed"), signals_held():
        base, fd = _create(locks_dir)
    chore = Chore(base, fd)
    try:
        try:
            chore.add(kind, *ids)
            yield chore
        finally:
            with signals_held():
                with host_errors(f"take {base} away"):
                    chore.end()
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
        chore = None
        try:
            with host_errors("note what to do if this is killed"), signals_held():
                base, fd = _create(locks_dir)
            held.callback(os.close, fd)
            chore = Chore(base, fd)
            chore.add(kind, *ids)
        except NoSpaceError:
            log.info("no room to note a chore; going on without")
            if chore is not None:
                chore.end()
            chore = None
        yield chore
        if chore is not None:
            with host_errors("take a chore away"):
                chore.end()


def _create(locks_dir: Path) -> tuple[Path, int]:
    """An empty file of our own, locked. Whoever finds it before it is locked takes it for one that has nothing to say."""
    while True:
        path = locks_dir / f"{PREFIX}{secrets.token_hex(6)}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        if ofdlock.try_lock(fd) and _is_at(fd, path):
            return path, fd
        os.close(fd)


@contextmanager
def abandoned(path: Path) -> Iterator[list[tuple[Kind, str]]]:
    """What is to be done, of a chore whose command was killed; nothing if it is at work, or has ended meanwhile. What the block
    leaves in the list stays noted, and all of it if the block fails.
    """
    try:  # never made anew: one that has ended in order would be there again, and free
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        yield []
        return
    try:
        if not (ofdlock.try_lock(fd) and _is_at(fd, path)):
            yield []
            return
        todo = [] if stat.S_IMODE(os.fstat(fd).st_mode) == ENDED_MODE else [*_said(path.name), *_written(fd)]
        count = len(todo)
        yield todo
        if 0 < len(todo) < count:
            _note_again(path, todo)
        if not todo or len(todo) < count:
            path.unlink(missing_ok=True)
    finally:
        os.close(fd)


def _note_again(path: Path, todo: Sequence[tuple[Kind, str]]) -> None:
    """Under a name of what is left of it: whatever cuts this short, what is to be done is noted somewhere."""
    for kind in {kind for kind, _ in todo}:
        for name in _named(f"{PREFIX}{secrets.token_hex(6)}", kind, [one for said, one in todo if said is kind]):
            path.with_name(name).hardlink_to(path)


def noted_ids(locks_dir: Path) -> set[str]:
    """All that a command is at work on now, or that was killed: it is seen to.

    Raises:
        HostError: if a chore cannot be read: what it names is not known.
    """
    with host_errors(f"read in {locks_dir} what other commands are at work on"):
        names: set[str] | None = None
        while names != (again := _names(locks_dir)):  # what is left of one may have got another name meanwhile
            names = again
    return {one for name in again for _, one in _said(name)}


def _names(locks_dir: Path) -> set[str]:
    return {path.name for path in locks_dir.iterdir() if path.name.startswith(PREFIX)}


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False


def _said(name: str) -> Iterator[tuple[Kind, str]]:
    """What the name of a chore says: none yet, if it is that by which it was made."""
    _token, *said = name.removeprefix(PREFIX).split("-")
    if not said:
        return
    kind, *ids = said
    if kind in list(Kind) and all(map(is_id, ids)):
        yield from ((Kind(kind), one) for one in ids)
    else:
        log.warning("%s is no chore of ours", name)


def _written(fd: int) -> Iterator[tuple[Kind, str]]:
    """What earlier commits wrote into the file: a kind and an id in each line."""
    for line in os.pread(fd, WRITTEN_MAX_BYTES, 0).decode("ascii", errors="replace").splitlines():
        kind, _, one = line.partition(" ")
        if kind in list(Kind) and is_id(one):
            yield Kind(kind), one
        else:
            log.warning("%r is no chore", line)
