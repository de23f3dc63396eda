"""What to say of a name that there is none of."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

SUGGESTED_MAX = 3


def hint(name: str, known: Iterable[str]) -> str:
    """Names that are spelled like it, if any are, and where to find them all."""
    near = difflib.get_close_matches(name, list(known), n=SUGGESTED_MAX)
    where = "`ramet verify --list` lists them."
    return f"Did you mean {' or '.join(map(repr, near))}? {where}" if near else where
