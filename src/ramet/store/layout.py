"""The store as a whole: its directories, work in progress, and the sweep of what a killed command left there."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ramet.errors import ConfigError, LockedError, host_errors
from ramet.paths import StorePaths
from ramet.store import atomic
from ramet.store.locks import locked

log = logging.getLogger("ramet.store")
ID_BYTES = 6


def new_id() -> str:
    """A new id: 12 hexadecimal digits."""
    return secrets.token_hex(ID_BYTES)


def is_id(text: str) -> bool:
    """Whether ``text`` has the form of an id."""
    return len(text) == 2 * ID_BYTES and all(c in "0123456789abcdef" for c in text)


def open_store(home: Path) -> StorePaths:
    """Create what is missing of the store (0700) and sweep abandoned work in progress.

    Raises:
        ConfigError: if ``home`` is something else than a directory of ours.
        HostError: if it cannot be created or written.
    """
    paths = StorePaths(home=home)
    if home.is_symlink() or (home.exists() and not home.is_dir()):
        raise ConfigError(f"{home} is not a directory.", hint="Set RAMET_HOME to a directory of its own.")
    with host_errors(f"open the store {home}"):
        for directory in paths.directories():
            if not directory.is_dir():
                directory.mkdir(mode=0o700, parents=directory == home, exist_ok=True)
        if home.stat().st_uid != os.geteuid():
            raise ConfigError(
                f"The store {home} belongs to uid {home.stat().st_uid}, and you are {os.geteuid()}.",
                hint="Set RAMET_HOME to a directory of your own.",
            )
        if not os.access(paths.tmp, os.W_OK):
            raise PermissionError(30, "Read-only file system", str(paths.tmp))
        _sweep(paths)
    return paths


@contextmanager
def work_in_progress(paths: StorePaths, name: str) -> Iterator[Path]:
    """A directory under tmp/ that is gone when the block ends, unless the block renamed it away; 0700.

    Its lock is held meanwhile, so that no other command's sweep takes it.
    """
    with locked(paths.locks, f"tmp-{name}"):
        directory = paths.tmp / name
        with host_errors(f"make {directory}"):
            directory.mkdir(mode=0o700)
        try:
            yield directory
        finally:
            if directory.exists():
                atomic.remove_tree(directory)


def discard(paths: StorePaths, directory: Path) -> None:
    """Delete a published directory: it vanishes in one rename, its files follow; a kill in between leaves it to the sweep."""
    name = f"trash-{new_id()}"
    with locked(paths.locks, f"tmp-{name}"), host_errors(f"delete {directory}"):
        trash = paths.tmp / name
        directory.rename(trash)
        atomic.fsync_directory(directory.parent)
        atomic.remove_tree(trash)


def _sweep(paths: StorePaths) -> None:
    for entry in list(paths.tmp.iterdir()):
        try:
            with locked(paths.locks, f"tmp-{entry.name}", timeout_s=0):
                if entry.exists():
                    log.info("sweeping %s, left by a command that was killed", entry)
                    atomic.remove_tree(entry)
        except LockedError:
            continue  # its command is at work
