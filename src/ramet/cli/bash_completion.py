"""Completing words with a colon in bash, such as ``snapshot:golden``. Bash hands one over in three (bash(1), COMP_WORDBREAKS),
and what it replaces is what follows the colon.
"""

from __future__ import annotations

import os
from typing import Any

from click.shell_completion import BashComplete, CompletionItem, add_completion_class, split_arg_string

COLON = ":"


@add_completion_class
class Completion(BashComplete):
    """click's, with such words put together again."""

    _replaced_after = 0
    """How much of each completion is there already, and is not bash's to replace."""

    def get_completion_args(self) -> tuple[list[str], str]:
        words = split_arg_string(os.environ["COMP_WORDS"])
        current = int(os.environ["COMP_CWORD"])
        joined: list[str] = []
        for word in words[: current + 1]:
            if joined and (word == COLON or joined[-1].endswith(COLON)):
                joined[-1] += word
            else:
                joined.append(word)
        if current >= len(words):  # nothing of it is typed
            return joined[1:], ""
        *arguments, incomplete = joined
        if len(joined) <= current:
            self._replaced_after = incomplete.rfind(COLON) + 1
        return arguments[1:], incomplete

    def format_completion(self, item: CompletionItem[Any]) -> str:
        return f"{item.type},{item.value[self._replaced_after :]}"
