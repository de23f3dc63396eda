"""Telling that a verb has made parked forks stale: nobody can claim them any more, and each keeps a VMM's memory.

The verb is done by then: pools that cannot be looked at are a warning, and never its failure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ramet.cli import failures
from ramet.errors import RametError

if TYPE_CHECKING:
    from ramet.instances.host import Host
    from ramet.model import InstanceInfo, PoolInfo


def after_move(host: Host, info: InstanceInfo) -> str | None:
    """Of an instance that has woken or gone to sleep: what became of its pool, if forks in it are stale."""
    found = next((pool for pool in _pools(host) or () if pool.source_id == info.id and pool.stale), None)
    if found is None:
        return None
    count = len(found.stale)
    said = f"{info.name}: {_forks(count)} in its pool cannot be claimed (stale): "
    replaces = f"`ramet pool {info.name} --size {count}` replaces"
    if found.why is None:
        return f"{said}of an earlier snapshot; {replaces} {'it' if count == 1 else 'them'}"
    return (
        f"{said}{found.why}; once it sleeps, {replaces} {'it' if count == 1 else 'them'}, and --size 0 empties the pool"
    )


def watched(host: Host) -> Callable[[str], str]:
    """To be called before anything is removed. What it returns is called after each removal, with the name of that, and tells of
    the pools that went stale since it was asked last.
    """
    known = _stale(_pools(host))

    def after(name: str) -> str:
        nonlocal known
        found = _pools(host)
        before, known = known, _stale(found)
        if found is None or before is None:  # of what was not seen, nobody knows whether it is new
            return ""
        return lines(*(_gone(name, pool) for pool in found if set(pool.stale) - before.get(pool.source_id, set())))

    return after


def _pools(host: Host) -> Sequence[PoolInfo] | None:
    """All pools; None, and a warning, if they cannot be looked at."""
    try:
        return host.pools()
    except RametError as err:
        failures.warn(f"whether a pool went stale is not known: {err.message}")
        return None


def _stale(found: Sequence[PoolInfo] | None) -> dict[str, set[str]] | None:
    return None if found is None else {pool.source_id: set(pool.stale) for pool in found}


def _gone(name: str, pool: PoolInfo) -> str:
    empties = f"`ramet pool {pool.source} --size 0` empties the pool"
    return f"{name}: {_forks(len(pool.stale))} in its pool cannot be claimed any more: {pool.why}; {empties}"


def _forks(count: int) -> str:
    return f"{count} parked fork{'' if count == 1 else 's'}"


def lines(*said: str | None) -> str:
    """Those that say something."""
    return "\n".join(one for one in said if one)
