"""What new instances and snapshots may be called, and what they are called when nobody says."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ramet import config
from ramet.errors import ConfigError, ConflictError, CorruptError, NotFoundError
from ramet.instances.context import Store
from ramet.model import Manifest
from ramet.store.layout import is_id
from ramet.store.names import all_names


def check_new_name(name: str, *, what: str = "instance") -> str:
    """Return ``name`` if something new can be called so.

    Raises:
        ConfigError: if it cannot be a name, or has the form of an id, which would hide whatever has that id.
    """
    config.check_name(name, what=what)
    if is_id(name):
        raise ConfigError(f"{name!r} has the form of an id.", hint="Use a name that is not 12 hexadecimal digits.")
    return name


def owner_name(store: Store, manifest: Manifest) -> str:
    """What the instance that a snapshot was taken of is called now: a claimed fork had none but its id before. The one in the
    manifest, if it is gone or its record is damaged.
    """
    try:
        return store.read(manifest.instance_id).name
    except (NotFoundError, CorruptError):
        return manifest.instance_name


def names_of_forks(store: Store, source_name: str, names: Sequence[str], count: int | None) -> tuple[str, ...]:
    """The names of the forks: those given, then SOURCE-1, SOURCE-2 … as far as they are free.

    Raises:
        ConfigError: for a count that does not fit the names.
        ConflictError: if a name is taken.
    """
    wanted = count if count is not None else max(len(names), 1)
    if not 1 <= wanted <= config.FORKS_MAX:
        raise ConfigError(f"{wanted} is no number of forks.", hint=f"Use 1 to {config.FORKS_MAX}.")
    if len(names) > wanted:
        raise ConfigError(f"{len(names)} names were given for {wanted} forks.")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"The name {twice!r} was given to two forks.")
    taken = set(all_names(store.paths.instance_names))
    for name in names:
        if name in taken:
            raise ConflictError(f"There is already an instance called {name!r}.", hint="`ramet ls` lists them.")
    chosen = list(names)
    number = 1
    while len(chosen) < wanted:
        suffix = f"-{number}"
        candidate = source_name[: config.NAME_MAX - len(suffix)] + suffix
        if candidate not in taken and candidate not in chosen:
            chosen.append(candidate)
        number += 1
    return tuple(chosen)


def free_snapshot_name(store: Store, instance_name: str) -> str:
    """A name for a snapshot that was given none: its instance's, and the time."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    taken = all_names(store.paths.snapshot_names)
    base = f"{instance_name[: config.NAME_MAX - 20]}-{stamp}"
    number = 1
    candidate = base
    while candidate in taken:
        number += 1
        candidate = f"{base}-{number}"
    return candidate
