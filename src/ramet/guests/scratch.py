"""Scratch directories whose names say whose they are: what a killed command has left goes with the next one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from ramet.store import atomic


@contextmanager
def scratch(parent: Path, prefix: str) -> Iterator[Path]:
    """A directory in ``parent`` for the block; those that killed processes have left there under this prefix go first.

    Raises:
        OSError: if it cannot be made, or theirs cannot be removed.
    """
    sweep(parent, prefix)
    with TemporaryDirectory(prefix=f"{prefix}{os.getpid()}-", dir=parent) as directory:
        yield Path(directory)


def sweep(parent: Path, prefix: str) -> None:
    """Remove the scratch directories of processes that have ended. One whose name says nobody's is left alone.

    Raises:
        OSError: if one cannot be removed.
    """
    for path in parent.glob(f"{prefix}*-*"):
        owner = path.name.removeprefix(prefix).partition("-")[0]
        if owner.isdecimal() and not Path(f"/proc/{owner}").exists():
            with suppress(FileNotFoundError):  # somebody else is at it
                atomic.remove_tree(path)
