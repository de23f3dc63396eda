"""What somebody may have meant by a name that there is none of."""

from __future__ import annotations

from collections.abc import Iterable

SUGGESTED_MAX = 3


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question that names what is spelled like it, the nearest first; nothing, if nothing is."""
    import difflib  # which a command that goes well never needs

    near = difflib.get_close_matches(name, list(known), n=SUGGESTED_MAX)
    return f"Did you mean {' or '.join(map(repr, near))}?" if near else ""
