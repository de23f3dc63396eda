"""What names mean, what somebody may have meant by one that there is none of, and how many of them are said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from ramet.errors import ConfigError

T = TypeVar("T")

SUGGESTED_MAX = 3
SAID_MAX = 6


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question that names what is spelled like it, the nearest first; nothing, if nothing is."""
    import difflib  # which a command that goes well never needs

    near = difflib.get_close_matches(name, list(known), n=SUGGESTED_MAX)
    return f"Did you mean {' or '.join(map(repr, near))}?" if near else ""


def named(known: Mapping[str, T], names: Sequence[str], *, what: str, listed_by: str) -> list[T]:
    """Those of ``known`` with these names, or all; in their own order.

    Raises:
        ConfigError: if there is none of a name: no ``what``, such as a scenario, which the command ``listed_by`` lists.
    """
    unknown = [name for name in names if name not in known]
    if unknown:
        hint = f"{did_you_mean(unknown[0], known)} `{listed_by}` lists them.".lstrip()
        raise ConfigError(f"There is no {what} {unknown[0]!r}.", hint=hint)
    return [one for name, one in known.items() if not names or name in names]


def in_short(words: Sequence[str]) -> str:
    """A list for people: ``SAID_MAX`` of it and how many more there are, if those are several."""
    more = len(words) - SAID_MAX
    return "; ".join(words) if more <= 1 else f"{'; '.join(words[:SAID_MAX])}; and {more} more"
