"""Verbs that take several names: all are tried, each is reported, and the first failure gives the exit status."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from ramet.cli import failures, output
from ramet.cli.context import App
from ramet.errors import InterruptedByUserError, RametError

T = TypeVar("T")


def each(
    app: App, names: Sequence[str], *, doing: str, action: Callable[[str], T], show: Callable[[str, T], str]
) -> int:
    """Do ``action`` to each name (once, in order) and print ``show`` of the result; returns the exit status.

    With ``--json`` an array at the end, one element a name: the result, or ``{"name", "error": {…}}``. An interruption
    ends it.
    """
    results: list[object] = []
    status = 0
    for name in dict.fromkeys(names):
        try:
            with app.working(f"{doing} {name}"):
                result = action(name)
        except InterruptedByUserError:
            raise
        except RametError as err:
            status = status or err.exit_status
            results.append({"name": name, "error": failures.describe(err)})
            failures.say(err.message, err.hint)
            app.trace()
        else:
            results.append(result)
            if not app.json:
                output.line(show(name, result))
    if app.json:
        output.json(results)
    return status
