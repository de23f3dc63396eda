"""A recorder of the steps of durable writes, which can make any one of them fail, or kill the process just before it.

fsync, chmod, renames and links are counted in the order in which they happen. A test learns the steps of an operation by
running it once, and then runs it again for each of them.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ramet.store import atomic


class Steps:
    """Context manager. ``fail_at``: the number of the step that raises ``error``; ``kill_at``: the one that is never made."""

    def __init__(
        self, *, fail_at: int | None = None, kill_at: int | None = None, error: BaseException | None = None
    ) -> None:
        self.seen: list[tuple[str, str]] = []
        self._fail_at = fail_at
        self._kill_at = kill_at
        self._error = error or OSError(5, "Input/output error")

    @contextmanager
    def recorded(self) -> Iterator[list[tuple[str, str]]]:
        """Yields the steps: pairs such as ``("fsync", "name")`` or ``("rename", "from -> to")``, names without directories."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", self._step("fsync", os.fsync, lambda fd: _name(fd)))
            patch.setattr(os, "fchmod", self._step("chmod", os.fchmod, lambda fd, mode: f"{_name(fd)} {mode:o}"))
            patch.setattr(os, "rename", self._step("rename", os.rename, _arrow))
            patch.setattr(os, "link", self._step("link", os.link, _arrow))
            patch.setattr(atomic, "rename_noreplace", self._step("rename_noreplace", atomic.rename_noreplace, _arrow))
            patch.setattr(shutil, "rmtree", self._step("rmtree", shutil.rmtree, lambda path: Path(path).name))
            yield self.seen

    def _step(self, verb: str, real: Callable[..., Any], describe: Callable[..., str]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            number = len(self.seen)
            self.seen.append((verb, describe(*arguments)))
            if number == self._kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if number == self._fail_at:
                raise self._error
            return real(*arguments, **options)

        return step


def write_in_pieces(limit: int) -> Callable[[int, bytes], int]:
    """An ``os.write`` that takes at most ``limit`` bytes at a time."""
    real = os.write
    return lambda fd, data: real(fd, data[:limit])


def _name(fd: int) -> str:
    return Path(f"/proc/self/fd/{fd}").readlink().name


def _arrow(source: Path | str, target: Path | str) -> str:
    return f"{Path(source).name} -> {Path(target).name}"
