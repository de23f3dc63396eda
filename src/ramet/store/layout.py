"""The store as a whole: its directories, work in progress, and the sweep of what a killed command left there."""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ramet.errors import ConfigError, LockedError, host_errors
from ramet.paths import StorePaths
from ramet.signals import signals_held
from ramet.store import atomic
from ramet.store.locks import locked

log = logging.getLogger("ramet.store")
ID_BYTES = 6
_WORK = re.compile(r"(trash-)?[0-9a-f]{12}(-fork)?")
"""What ``work_in_progress`` and ``discard`` name directories under tmp/: the sweep takes nothing else."""
NOT_OURS_BUT_HARMLESS = frozenset({"lost+found"})


def new_id() -> str:
    """A new id: 12 hexadecimal digits."""
    return secrets.token_hex(ID_BYTES)


def is_id(text: str) -> bool:
    """Whether ``text`` has the form of an id."""
    return len(text) == 2 * ID_BYTES and all(c in "0123456789abcdef" for c in text)


def open_store(home: Path) -> StorePaths:
    """Create what is missing of the store (0700) and sweep abandoned work in progress.

    Raises:
        ConfigError: if ``home`` is something else than a directory of ours, holds other things, or can be written by everybody;
            nothing was touched.
        HostError: if it cannot be created or written.
    """
    paths = StorePaths(home=home)
    with host_errors(f"open the store {home}"):
        _refuse_foreign(paths)
        for directory in paths.directories():
            if not directory.is_dir():
                directory.mkdir(mode=0o700, parents=directory == home, exist_ok=True)
            else:
                _refuse_another_users(directory)
                _close_to_others(directory)
        if not os.access(paths.tmp, os.W_OK):
            number = errno.EROFS if os.statvfs(paths.tmp).f_flag & os.ST_RDONLY else errno.EACCES
            raise OSError(number, os.strerror(number), str(paths.tmp))
        _sweep(paths)
        _sweep_locks(paths)
    return paths


def _refuse_foreign(paths: StorePaths) -> None:
    """Refuse a ``home`` that is not ours alone: with RAMET_HOME=/ we would take /tmp for our own work in progress."""
    home = paths.home
    if home.is_symlink() or (home.exists() and not home.is_dir()):
        raise ConfigError(f"{home} is not a directory.", hint="Set RAMET_HOME to a directory of its own.")
    if not home.exists():
        return
    _refuse_another_users(home)
    ours = {directory.name for directory in paths.directories() if directory.parent == home}
    found = {entry.name for entry in home.iterdir()} - NOT_OURS_BUT_HARMLESS
    if not ours <= found and not found <= ours:
        raise ConfigError(
            f"{home} holds other things, such as {min(found - ours)!r}: it is no store of Ramet.",
            hint="Set RAMET_HOME to an empty directory, or to one that does not exist yet.",
        )


def _refuse_another_users(directory: Path) -> None:
    owner = directory.stat().st_uid
    if owner != os.geteuid():
        raise ConfigError(
            f"The store's directory {directory} belongs to uid {owner}, and you are {os.geteuid()}.",
            hint="Set RAMET_HOME to a directory of your own.",
        )


def _close_to_others(directory: Path) -> None:
    """Have nobody else put or rename things in a directory of the store: records say which process is to be killed. Its group is
    kept out; where everybody could write, nobody knows who has, and it is refused.
    """
    mode = directory.stat().st_mode
    if mode & 0o022 == 0o020:  # as mkdir(1) makes it under umask 002, where the group is the user's own
        directory.chmod(mode & 0o7755)
        log.warning("%s could be written by its group, and is closed to it now", directory)
        mode = directory.stat().st_mode
    if mode & 0o022:
        raise ConfigError(
            f"Others may write into the store's directory {directory}: its mode is {mode & 0o7777:04o}.",
            hint=f"If you know who has: chmod go-w {directory}; if that changes nothing, its file system has no modes. "
            "Else set RAMET_HOME to a directory of your own.",
        )


@contextmanager
def work_in_progress(paths: StorePaths, name: str) -> Iterator[Path]:
    """A directory under tmp/ that is gone when the block ends, unless the block renamed it away; 0700.

    Its lock is held meanwhile, so that no other command's sweep takes it.
    """
    with locked(paths.locks, f"tmp-{name}"):
        directory = paths.tmp / name
        with ExitStack() as held:
            held.enter_context(signals_held())
            with host_errors(f"make {directory}"):
                directory.mkdir(mode=0o700)
            try:
                held.close()
                yield directory
            finally:
                if directory.exists():
                    with host_errors(f"remove {directory}"):
                        atomic.remove_tree(directory)


def discard(paths: StorePaths, directory: Path) -> None:
    """Delete a published directory: it vanishes in one rename, its files follow; a kill in between leaves it to the sweep."""
    name = f"trash-{new_id()}"
    with locked(paths.locks, f"tmp-{name}"), host_errors(f"delete {directory}"):
        trash = paths.tmp / name
        directory.rename(trash)
        atomic.fsync_directory(directory.parent)
        atomic.remove_tree(trash)


def is_work(name: str) -> bool:
    """Whether ``name`` is what we would call something under tmp/."""
    return _WORK.fullmatch(name) is not None


def _sweep(paths: StorePaths) -> None:
    for entry in list(paths.tmp.iterdir()):
        if not is_work(entry.name):
            log.warning("%s is not ours: left alone", entry)
            continue
        try:
            with locked(paths.locks, f"tmp-{entry.name}", timeout_s=0):
                if entry.is_symlink() or entry.exists():
                    log.info("sweeping %s, left by a command that was killed", entry)
                    atomic.remove_tree(entry)
        except LockedError:
            continue  # its command is at work
        except OSError as err:
            # Its file system is damaged, or somebody has made it immutable: nothing else depends on it.
            log.warning("%s was left by a command that was killed, and cannot be removed: %s", entry, err.strerror)


def _sweep_locks(paths: StorePaths) -> None:
    """Remove the locks of what is gone, and of checks, which a killed command has left: whoever wants one makes it anew
    (``locks.py``).
    """
    places = {"tmp": paths.tmp, "instance": paths.instances, "snapshot": paths.snapshots}
    for entry in list(paths.locks.iterdir()):
        kind, _, one = entry.name.partition("-")
        if kind == "check" or (kind in places and not (places[kind] / one).exists()):
            with suppress(LockedError), locked(paths.locks, entry.name, timeout_s=0):
                log.info("the lock %s is of nothing any more", entry.name)
