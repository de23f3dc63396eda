"""Which step comes next: any that is possible now, each as often as its weight says.

Hypothesis would choose among rules itself, but it leaves most of them out of any one sequence and takes the first of the rest by
name far more often than the others: then a sleep, a named snapshot and a way back to it meet too seldom.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from hypothesis import strategies as st

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., None])
Condition = Callable[[Any], object]
_arguments: dict[str, tuple[int, Mapping[str, st.SearchStrategy[Any]]]] = {}
_conditions: dict[str, list[Condition]] = {}


class Step:
    """A method of the sequence and its arguments; prints as the call that it is."""

    def __init__(self, name: str, arguments: Mapping[str, Any]) -> None:
        self.name = name
        self.arguments = arguments

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{key}={value!r}' for key, value in self.arguments.items())})"

    def take(self, sequence: object) -> None:
        """Do it."""
        getattr(sequence, self.name)(**self.arguments)


def chosen(*, weight: int = 2, **arguments: st.SearchStrategy[Any]) -> Callable[[F], F]:
    """The method is a step, with arguments from these strategies."""

    def note(method: F) -> F:
        _arguments[method.__name__] = weight, arguments
        return method

    return note


def needs(condition: Condition) -> Callable[[F], F]:
    """The step is possible only where ``condition`` holds of the sequence."""

    def note(method: F) -> F:
        _conditions.setdefault(method.__name__, []).append(condition)
        return method

    return note


def one_of(choose: Callable[[Any], list[T]]) -> st.SearchStrategy[T]:
    """One of what the sequence so far has led to."""
    return st.runner().flatmap(lambda sequence: st.sampled_from(choose(sequence)))


@st.composite
def next_step(draw: st.DrawFn, sequence: object) -> Step:
    """Any that is possible now; the heaviest come first, since the first is taken most often."""
    names = [
        name
        for name, (weight, _) in sorted(_arguments.items(), key=lambda entry: (-entry[1][0], entry[0]))
        if hasattr(sequence, name) and all(condition(sequence) for condition in _conditions.get(name, ()))
        for _ in range(weight)
    ]
    name = draw(st.sampled_from(names))
    return Step(name, {key: draw(strategy) for key, strategy in _arguments[name][1].items()})
