"""Which Ramet this is: its version, and the commit that it was made from."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

PACKAGE = Path(__file__).parent
COMMIT_DIGITS = 12


def full(version: str) -> str:
    """``0.1.0 (1a2b3c4d5e6f)``; the version alone where nobody knows the commit."""
    commit = _packaged() or _checked_out(PACKAGE.parents[1] / ".git")
    return f"{version} ({commit})" if commit else version


def _packaged() -> str | None:
    """What a wheel brings (tools/build_hook.py)."""
    with suppress(OSError):
        return (PACKAGE / "commit").read_text().strip()
    return None


def _checked_out(git: Path) -> str | None:
    """The commit of a checkout, whose ``.git`` may be a worktree's file (gitrepository-layout(5)); git itself is not needed."""
    with suppress(OSError):
        common = git
        if git.is_file():
            git = git.parent / git.read_text().removeprefix("gitdir: ").strip()
            common = git / (git / "commondir").read_text().strip()
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head[:COMMIT_DIGITS]
        ref = head.removeprefix("ref: ")
        with suppress(FileNotFoundError):
            return (common / ref).read_text()[:COMMIT_DIGITS]
        for line in (common / "packed-refs").read_text().splitlines():
            if line.endswith(f" {ref}"):
                return line[:COMMIT_DIGITS]
    return None
