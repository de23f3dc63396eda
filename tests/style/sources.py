"""The sources as the style tests see them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src" / "ramet"


def python_files() -> list[Path]:
    """Every module of the package."""
    return sorted(SRC.rglob("*.py"))


def name_of(path: Path) -> str:
    """A path as a person would write it, for the ids of tests."""
    return str(path.relative_to(ROOT))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def exception_classes() -> Iterator[tuple[Path, ast.ClassDef, list[str]]]:
    """Every exception class of the package: its file, its definition, the names of its bases."""
    for path in python_files():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                bases = [ast.unparse(base) for base in node.bases]
                if any(base.endswith(("Error", "Exception", "Interrupt", "Exit")) for base in bases):
                    yield path, node, bases
