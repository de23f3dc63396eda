"""Every verb is in the documents, and the list of verbs says what their help says."""

from __future__ import annotations

import re

import click
import pytest

from ramet.cli.catalogue import VERBS, LazyGroup
from tests.style.sources import ROOT

SUBCOMMANDS = {"image", "snapshot"}


def command(verb: str) -> click.Command:
    group = LazyGroup("ramet")
    found = group.get_command(click.Context(group), verb)
    assert found is not None
    return found


def first_sentence(help_text: str | None) -> str:
    assert help_text, "it has no help"
    return re.split(r"(?<=\.)(?:\s|$)", " ".join(help_text.split()), maxsplit=1)[0]


@pytest.mark.parametrize("verb", VERBS)
def test_the_summary_is_the_first_sentence_of_the_help(verb: str) -> None:
    """The list of verbs is printed without importing any of them, so it is written twice."""
    assert VERBS[verb].summary == first_sentence(command(verb).help)


@pytest.mark.parametrize("verb", VERBS)
def test_the_command_is_called_as_it_is_listed(verb: str) -> None:
    assert command(verb).name == verb


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_documented(verb: str) -> None:
    """In README.md or under docs/, as a person would type it."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    assert re.search(rf"\bramet {verb}\b", text), f"`ramet {verb}` is in none of {[page.name for page in pages]}"


@pytest.mark.parametrize("verb", sorted(SUBCOMMANDS))
def test_every_subcommand_has_help(verb: str) -> None:
    group = command(verb)
    assert isinstance(group, click.Group)
    for name, sub in group.commands.items():
        assert sub.name == name
        assert first_sentence(sub.help).endswith(".")


@pytest.mark.parametrize("verb", sorted(set(VERBS) - SUBCOMMANDS))
def test_every_option_has_help(verb: str) -> None:
    for parameter in command(verb).params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{verb} {parameter.opts[0]}"


def test_only_the_verbs_of_the_catalogue_with_subcommands_are_groups() -> None:
    assert {verb for verb in VERBS if isinstance(command(verb), click.Group)} == SUBCOMMANDS
