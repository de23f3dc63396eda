"""Ramet: run Linux microVMs, put them to sleep, fork them copy-on-write, and prove that the forks are isolated.

``from ramet import Host`` gives every verb as a method.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["Host", "__version__"]
__version__ = "0.1.0"

if TYPE_CHECKING:
    from ramet.instances.host import Host


def __getattr__(name: str) -> object:
    # Host is imported when it is asked for: `ramet --version` must not pay for it.
    if name == "Host":
        from ramet.instances.host import Host

        return Host
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
