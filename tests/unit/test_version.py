"""``ramet --version``: the commit of a wheel, of a checkout, of a worktree; and none where nobody knows it."""

from __future__ import annotations

from pathlib import Path

import pytest

import ramet
from ramet import version

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOLD = f"{ramet.__version__} (0123456789ab)"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tmp_path / "src/ramet"
    package.mkdir(parents=True)
    monkeypatch.setattr(version, "PACKAGE", package)
    return tmp_path


def test_of_an_installation_without_one(root: Path) -> None:
    assert version.full(ramet.__version__) == ramet.__version__


def test_of_a_wheel(root: Path) -> None:
    (root / "src/ramet/commit").write_text("0123456789ab\n")
    assert version.full(ramet.__version__) == TOLD


@pytest.mark.parametrize("kind", ["loose", "packed", "detached", "worktree"])
def test_of_a_checkout(root: Path, kind: str) -> None:
    git = common = root / ".git"
    if kind == "worktree":
        common = root / "elsewhere/.git"
        git = common / "worktrees/mine"
        git.mkdir(parents=True)
        (root / ".git").write_text(f"gitdir: {git}\n")
        (git / "commondir").write_text("../..\n")
    git.mkdir(parents=True, exist_ok=True)
    (git / "HEAD").write_text(f"{COMMIT}\n" if kind == "detached" else "ref: refs/heads/main\n")
    if kind == "packed":
        (common / "packed-refs").write_text(f"# pack-refs\n{'f' * 40} refs/heads/other\n{COMMIT} refs/heads/main\n")
    elif kind != "detached":
        (common / "refs/heads").mkdir(parents=True)
        (common / "refs/heads/main").write_text(f"{COMMIT}\n")
    assert version.full(ramet.__version__) == TOLD


def test_of_a_repository_without_a_commit(root: Path) -> None:
    (root / ".git").mkdir()
    (root / ".git/HEAD").write_text("ref: refs/heads/main\n")
    assert version.full(ramet.__version__) == ramet.__version__
