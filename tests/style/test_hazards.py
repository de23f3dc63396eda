"""docs/isolation.md answers every hazard that code, tests or documents name, and what it cites is there."""

from __future__ import annotations

import ast
import re

from ramet.verify.claims import CLAIMS
from ramet.verify.sabotage import SABOTAGES
from ramet.verify.scenarios.catalogue import SCENARIOS
from tests.style.sources import ROOT

DOCUMENT = ROOT / "docs" / "isolation.md"
ROW = re.compile(r"^\| \*\*(H\d\d)\*\* .* \| (.+) \| (.+) \|$", re.MULTILINE)
NAMED = re.compile(r"\bH\d\d\b")
CITED = re.compile(r"`(test_\w+)::(test_\w+)`")
WORD = re.compile(r"`([a-z]+(?:-[a-z]+)+)`")
NO_CHECKS = {"discard-data", "send-configuration"}
"""Options of VMMs."""


def rows() -> dict[str, str]:
    return {number: f"{covers} {limits}" for number, covers, limits in ROW.findall(DOCUMENT.read_text())}


def test_every_hazard_that_is_named_anywhere_has_one_row() -> None:
    numbers = [number for number, _, _ in ROW.findall(DOCUMENT.read_text())]
    assert numbers == sorted(set(numbers))
    named = {
        number
        for folder in ("src", "tests", "docs", "lab", "bench")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".md", ".c", ".h")
        for number in NAMED.findall(path.read_text(encoding="utf-8"))
    }
    assert named - set(numbers) == set()


def test_every_claim_s_hazards_name_it_in_return() -> None:
    """A check that says that it is about a hazard is what covers it, or a part of that."""
    found = rows()
    missing = {
        claim.id: number
        for claim in CLAIMS.values()
        for number in claim.hazards
        if f"`{claim.id}`" not in found[number]
    }
    assert missing == {}


def test_every_test_that_is_cited_exists() -> None:
    defined = {
        (path.stem, node.name)
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    cited = set(CITED.findall(DOCUMENT.read_text()))
    assert cited
    assert cited - defined == set()


def test_every_check_and_sabotage_that_a_row_cites_exists() -> None:
    words = {word for text in rows().values() for word in WORD.findall(text)}
    assert words - set(CLAIMS) - set(SABOTAGES) - NO_CHECKS == set()


def test_the_table_of_claims_says_what_the_verifier_does() -> None:
    """Of each claim: in which scenarios it is looked at, and which sabotages it must catch."""
    rows = re.findall(r"^\| `([a-z-]+)` \| ([a-z, ]+) \| .* \|([^|]+)\|$", DOCUMENT.read_text(), re.MULTILINE)
    told = {claim: (scenarios.split(", "), set(WORD.findall(sabotages))) for claim, scenarios, sabotages in rows}
    looked = {claim: [one.name for one in SCENARIOS.values() if claim in one.claims] for claim in CLAIMS}
    words = {one.name for one in SABOTAGES.values() if "-" in one.name}
    caught = {claim: {one.name for one in SABOTAGES.values() if claim in one.caught_by} & words for claim in CLAIMS}
    assert told == {claim: (looked[claim], caught[claim]) for claim in CLAIMS}
