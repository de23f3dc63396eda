"""Whether memory and disk are of one instant, as a guest that counts tells it when it wakes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ramet.verify.scenarios.counting import look_at_the_pair
from ramet.verify.world import World


class Told:
    """A guest whose hook has told this, one after the other restore; what was looked at, and how it was restored."""

    def __init__(self, *told: str) -> None:
        self.restored: list[dict[str, Any]] = []
        self.problems: list[str] = []
        answers = iter(told)
        self.host = SimpleNamespace(restore=lambda _name, **how: self.restored.append(how))
        self.ledger = SimpleNamespace(look=lambda _claim, _at, problems, found: self.problems.extend(problems))
        self._answers: Iterator[str] = answers

    def name(self, role: str) -> str:
        return role

    def snapshot_dir(self, _role: str) -> Path:
        return Path("/snapshots", "5" * 12)

    def guest(self, _role: str, _script: str) -> str:
        return next(self._answers)


def looked(*told: str) -> Told:
    world = Told(*told)
    look_at_the_pair(cast("World", world), "live-pair-agrees", "fork", before=5, after=9)
    return world


@pytest.mark.parametrize(
    ("seen", "problem"),
    [
        ("7\n00000007", None),
        ("7\n00000008", None),
        ("7\n00000009", "of two instants"),
        ("7\n00000006", "of two instants"),
        ("4\n00000004", "had said 5 before"),
        ("10\n00000010", "said 9 after the fork"),
        ("utter nonsense", "cannot tell"),
    ],
)
def test_what_a_guest_says_is_judged(seen: str, problem: str | None) -> None:
    problems = looked(seen).problems
    assert (problems == []) if problem is None else (problem in problems[0])


def test_a_hook_that_had_no_time_is_asked_once_more_of_the_same_snapshot() -> None:
    world = looked("", "7\n00000007")
    assert world.problems == []
    assert world.restored == [{}, {"snapshot": "5" * 12, "discard_memory": True, "discard_disk": True}]
    assert looked("7", "7\n00000007").problems == [], "it was killed between the two"
    assert "twice" in looked("", "7").problems[0]
