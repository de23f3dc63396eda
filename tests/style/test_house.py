"""The house: a README in each folder, short files, a docstring on everything public, a changelog."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.style.sources import ROOT, SRC, name_of, python_files, tree_of

FOLDERS = ["bench", "cli", "guests", "hypervisors", "instances", "linux", "snapshots", "store", "verify"]
LINES_MAX = 500
CODE = {".py", ".c", ".h"}
ROOMS_WITHIN = ("bench/benchmarks", "verify/reports", "verify/scenarios", "verify/strikes")
PLACES = ("src", "tests", "bench", "lab", "tools")


def test_the_folders_are_the_ones_of_the_house() -> None:
    """A new folder joins the list, and so gets its README."""
    found = {path.parent.relative_to(SRC).parts[0] for path in python_files() if path.parent != SRC}
    assert found == set(FOLDERS)


@pytest.mark.parametrize("folder", [*FOLDERS, *ROOMS_WITHIN])
def test_each_folder_says_what_it_is_for(folder: str) -> None:
    text = (SRC / folder / "README.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {folder}/\n")
    assert len(text.split()) > 30, "a title is no purpose"
    modules = {path.name for path in (SRC / folder).glob("*.py")} - {"__init__.py", "__main__.py"}
    named = set(re.findall(r"`([a-z_]+\.py)`", text))
    assert named <= modules, "it names a file that is gone"


@pytest.mark.parametrize(
    "folder", ["bench", "cli", "guests", "instances", "linux", "snapshots", "store", "verify", *ROOMS_WITHIN]
)
def test_a_folder_that_lists_its_files_lists_them_all(folder: str) -> None:
    text = (SRC / folder / "README.md").read_text(encoding="utf-8")
    for path in (SRC / folder).glob("*.py"):
        assert path.name in ("__init__.py", "__main__.py") or f"`{path.name}`" in text


def code_files() -> list[Path]:
    return sorted(path for place in PLACES for path in (ROOT / place).rglob("*") if path.suffix in CODE)


@pytest.mark.parametrize("path", code_files(), ids=name_of)
def test_no_file_is_longer_than_a_person_reads(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LINES_MAX


@pytest.mark.parametrize("path", python_files(), ids=name_of)
def test_everything_public_has_a_docstring(path: Path) -> None:
    tree = tree_of(path)
    missing = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert ast.get_docstring(tree), "the module has none"
    assert missing == []


@pytest.mark.parametrize("path", python_files(), ids=name_of)
def test_an_init_file_only_re_exports(path: Path) -> None:
    """So an import costs what it names, and a folder holds no code that its listing does not show."""
    if path.name != "__init__.py" or path.parent == SRC:
        return
    allowed = (ast.Import, ast.ImportFrom, ast.Assign, ast.Expr)
    assert all(isinstance(node, allowed) for node in tree_of(path).body)


def test_the_changelog_has_a_place_for_what_is_not_released() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## \[Unreleased\]$", text, re.MULTILINE)


def test_the_readme_begins_with_what_it_is() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# Ramet"
    assert len(" ".join(lines[1:40]).split()) > 60, "the first screen says nothing"
