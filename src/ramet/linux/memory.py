"""How much memory there is for more processes: /proc/meminfo, and the limits of our own control group (cgroups(7))."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

MEMINFO: Final = Path("/proc/meminfo")
OWN_CGROUP: Final = Path("/proc/self/cgroup")
CGROUPS: Final = Path("/sys/fs/cgroup")


def available_bytes() -> int:
    """MemAvailable, or what a cgroup v2 that we are in leaves of its limit, if that is less.

    Raises:
        OSError: if /proc is not there.
    """
    lines = MEMINFO.read_text().splitlines()
    found = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024
    return min([found, *_left_in_cgroups()])


def limit_bytes() -> int | None:
    """What a cgroup v2 that we are in lets all of its processes have at most; None: it does not limit them.

    Raises:
        OSError: if /proc is not there.
    """
    return min((limit for limit, _ in _limits_and_uses()), default=None)


def _left_in_cgroups() -> list[int]:
    return [max(limit - used, 0) for limit, used in _limits_and_uses()]


def _limits_and_uses() -> Iterator[tuple[int, int]]:
    """Of our own cgroup, and of those that it is in; none where there is no cgroup v2, or no limit."""
    for line in OWN_CGROUP.read_text().splitlines():
        if not line.startswith("0::/"):
            continue  # version 1
        group = CGROUPS / line.removeprefix("0::/")
        while group != CGROUPS.parent:
            with suppress(OSError, ValueError):  # "max" is no limit; a controller may be off
                limit, used = (int((group / f"memory.{what}").read_text()) for what in ("max", "current"))
                yield limit, used
            group = group.parent
