"""Chores: what the next command has to do for one that was killed.

A command that is about to make something which, half made, nothing else would lead to, notes it first: in a file under ``locks/``
that it keeps locked while it works, and unlinks when it has ended, well or not. A chore that is there and not locked is one whose
command was killed. Its unlinking is what makes a command's work final.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

from ramet.errors import host_errors
from ramet.linux import ofdlock
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


class Chore:
    """One that this process has noted."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def add(self, kind: Kind, *ids: str | None) -> None:
        """Note more. Each line is one write to a file that is appended to: it is there or not."""
        for one in filter(None, ids):
            os.write(self._fd, f"{kind} {one}\n".encode())


@contextmanager
def noted(locks_dir: Path, kind: Kind, *ids: str | None, durable: bool = False) -> Iterator[Chore]:
    """Keep a chore for the block. ``durable``: when this returns, a power cut does not bring it back.

    Raises:
        HostError: if it cannot be written; the block was not begun.
    """
    with host_errors(f"note in {locks_dir} what to do if this is killed"):
        path, fd = _create(locks_dir)
    try:
        chore = Chore(fd)
        with host_errors(f"write {path}"):
            chore.add(kind, *ids)
        yield chore
    finally:
        with signals_held():
            path.unlink(missing_ok=True)
            os.close(fd)
            if durable:
                atomic.fsync_directory(locks_dir)


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
    """What is to be done, of a chore whose command was killed; nothing if it is at work, or has ended meanwhile. The chore goes
    if the block succeeds; else it stays.
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
        yield list(_read(path))
        path.unlink(missing_ok=True)
    finally:
        os.close(fd)


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
