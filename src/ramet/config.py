"""What a user sets: the environment, sizes and names. Everything is checked here, before anything is touched."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from ramet.errors import ConfigError
from ramet.model import MIB

NAME_MAX: Final = 63
FORKS_MAX: Final = 1000
"""At once, and in a pool."""
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_SIZE = re.compile(r"(\d{1,15})(?:([KMGT])(?:iB|B)?)?", re.IGNORECASE | re.ASCII)
_UNIT: Final = {"": 1, "K": 1024, "M": MIB, "G": 1024 * MIB, "T": 1024 * 1024 * MIB}

MEMORY_MIN_MIB: Final = 128
"""Below this Debian's kernel and its initramfs do not come up."""
MEMORY_MAX_MIB: Final = 1024 * 1024
DISK_MIN_BYTES: Final = 16 * MIB
CPUS_MAX: Final = 64


def default_home() -> Path:
    """``$RAMET_HOME``, else ``unnamed_home()``.

    Raises:
        ConfigError: if ``$RAMET_HOME`` is set and not an absolute path.
    """
    given = os.environ.get("RAMET_HOME")
    if given:
        home = Path(given)
        if not home.is_absolute() or "\n" in given:
            raise ConfigError(f"RAMET_HOME must be an absolute path without newlines, not {given!r}.")
        return home
    return unnamed_home()


def unnamed_home() -> Path:
    """Where the store is if nobody says where: /var/lib/ramet as root, else ``$XDG_STATE_HOME/ramet``."""
    if os.geteuid() == 0:
        return Path("/var/lib/ramet")
    import platformdirs  # costs 8 ms of start-up, needed here alone

    return Path(platformdirs.user_state_dir("ramet"))


def cache_dir() -> Path:
    """Where downloads and build products may be kept: ``$XDG_CACHE_HOME/ramet``, or under /var/cache as root."""
    if os.geteuid() == 0 and "XDG_CACHE_HOME" not in os.environ:
        return Path("/var/cache/ramet")
    import platformdirs

    return Path(platformdirs.user_cache_dir("ramet"))


def confinement_wanted() -> bool:
    """Whether VMMs are to be confined, where the kernel can: yes, unless ``$RAMET_CONFINEMENT`` is ``off``.

    Raises:
        ConfigError: if it is set to anything else than ``on`` or ``off``.
    """
    return _is_on("RAMET_CONFINEMENT")


def vmm_users_wanted() -> bool:
    """Whether VMMs are to run as users of their own, where Ramet can do that: yes, unless ``$RAMET_VMM_USERS`` is ``off``.

    Raises:
        ConfigError: if it is set to anything else than ``on`` or ``off``.
    """
    return _is_on("RAMET_VMM_USERS")


def _is_on(variable: str) -> bool:
    given = os.environ.get(variable) or "on"
    if given not in ("on", "off"):
        raise ConfigError(f"{variable} is {given!r}.", hint="Set it to off, to on, or not at all.")
    return given == "on"


def more_that_vmms_read() -> list[Path]:
    """``$RAMET_VMM_READS``: what VMMs may read and execute besides what they are known to need, separated by colons.

    Raises:
        ConfigError: if one is not an absolute path, or does not exist.
    """
    given = [Path(text) for text in os.environ.get("RAMET_VMM_READS", "").split(":") if text]
    for path in given:
        if not path.is_absolute():
            raise ConfigError(f"RAMET_VMM_READS must hold absolute paths, not {str(path)!r}.")
        if not path.exists():
            raise ConfigError(f"RAMET_VMM_READS names {path}, which does not exist.")
    return given


def check_name(name: str, *, what: str = "instance") -> str:
    """Return ``name`` if it can be a name: 1 to 63 of ``A-Za-z0-9._-``, letters or digits at both ends, no ``..``.

    Raises:
        ConfigError: otherwise, with the offending name shortened and its control characters escaped.
    """
    if len(name) <= NAME_MAX and _NAME.fullmatch(name) and ".." not in name:
        return name
    shown = repr(name)  # in which a character may take ten
    if len(shown) > 42:
        shown = f"{shown[:41]}{shown[-1]}… ({len(name)} characters)"
    raise ConfigError(
        f"{shown} cannot be the name of {'a' if what[0] not in 'aeiou' else 'an'} {what}.",
        hint=f"Use 1 to {NAME_MAX} letters, digits, '.', '_' or '-', beginning and ending with a letter or digit.",
    )


def parse_size(text: str, *, what: str) -> int:
    """Bytes in ``text``: ``256M``, ``1G``, ``2GiB``, ``512`` (MiB); units are powers of 1024.

    Raises:
        ConfigError: if it is not a size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{text!r} is not a size for {what}.", hint="Write it like 256M or 2G.")
    unit = (match.group(2) or "M").upper()
    return int(match.group(1)) * _UNIT[unit]


def check_memory(memory_mib: int, *, host_mib: int) -> int:
    """Return ``memory_mib`` if a guest of that size can run here.

    Raises:
        ConfigError: if it is too small to boot or more than the host has.
    """
    if memory_mib < MEMORY_MIN_MIB:
        raise ConfigError(
            f"A guest cannot boot with {memory_mib} MiB of memory.", hint=f"Give it at least {MEMORY_MIN_MIB}M."
        )
    if memory_mib > min(host_mib, MEMORY_MAX_MIB):
        raise ConfigError(
            f"{memory_mib} MiB of guest memory is more than this host has ({host_mib} MiB).",
            hint="Ask for less: a guest that is larger than its host ends in the out-of-memory killer.",
        )
    return memory_mib


def host_memory_mib() -> int:
    """MemTotal of /proc/meminfo, in MiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MIB
