"""Names: a file under names/ that holds an id, created so that two creates cannot both win."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ramet.errors import ConflictError, CorruptError, HostError, host_error, host_errors
from ramet.store import atomic

NO_FILE = (errno.EISDIR, errno.ELOOP, errno.ENXIO)
"""A directory, a link in a circle, a socket."""


def claim(directory: Path, name: str, target_id: str, *, what: str) -> None:
    """Let ``name`` mean ``target_id``.

    Raises:
        ConflictError: if the name is taken.
    """
    with host_errors(f"claim the name {name!r}"):
        try:
            atomic.create_exclusive(directory / name, target_id.encode() + b"\n")
        except FileExistsError as err:
            raise ConflictError(
                f"There is already {'an' if what[0] in 'aeiou' else 'a'} {what} called {name!r}.",
                hint="Choose another name, or remove that one first.",
            ) from err


def release(directory: Path, name: str, target_id: str) -> None:
    """Free ``name`` if it still means ``target_id``; never one that somebody else has claimed since."""
    with host_errors(f"free the name {name!r}"), _one_release_at_a_time(directory):
        if lookup(directory, name) == target_id:
            (directory / name).unlink(missing_ok=True)
            atomic.fsync_directory(directory)


def release_others(directory: Path, name: str, target_id: str) -> None:
    """Free all other names that mean ``target_id`` than ``name``: a renaming that was cut short leaves two."""
    with host_errors(f"read {directory}"):
        others = [other for other in taken(directory) if other != name]
    for other in others:
        with suppress(CorruptError, HostError):  # another's, which is damaged
            if lookup(directory, other) == target_id:
                release(directory, other, target_id)


@contextmanager
def _one_release_at_a_time(directory: Path) -> Iterator[None]:
    """Nothing else unlinks names, so a name that was looked up under this lock still means the same when it is unlinked."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)  # an OFD lock would need a descriptor open for writing
        yield
    finally:
        os.close(fd)


def lookup(directory: Path, name: str) -> str | None:
    """The id that ``name`` means, or None.

    Raises:
        CorruptError: if it is no file, or holds no id.
        HostError: if it could not be read, which says nothing of what it holds.
    """
    path = directory / name
    try:
        text = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as err:
        raise CorruptError(f"{path} cannot be read as an id: {err}.", hint="Remove that file by hand.") from err
    except OSError as err:
        if err.errno not in NO_FILE:
            raise host_error(f"read {path}", err) from err
        raise CorruptError(f"{path} cannot be read as an id: {err}.", hint="Remove that file by hand.") from err
    if not text.isalnum():
        raise CorruptError(f"{path} holds {text[:40]!r}, which is no id.", hint="Remove that file by hand.")
    return text


def taken(directory: Path) -> list[str]:
    """Every name there, whatever it means."""
    return sorted(entry.name for entry in directory.iterdir() if entry.name[0] != ".")  # a temporary file begins so


def names_of(directory: Path, target_id: str) -> list[str]:
    """The names that mean ``target_id``, among those that can be read."""
    found = []
    for name in taken(directory):
        with suppress(CorruptError, HostError):
            if lookup(directory, name) == target_id:
                found.append(name)
    return found


def all_names(directory: Path) -> dict[str, str]:
    """Every name and the id that it means.

    Raises:
        CorruptError: if one cannot be read.
    """
    found = {}
    for name in taken(directory):
        target = lookup(directory, name)
        if target is not None:
            found[name] = target
    return found
