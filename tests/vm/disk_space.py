"""Using up a file system."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def take_all_but(ballast: Path, leaving_bytes: int) -> None:
    """Use up a file system: what is free, without what the tree of a large file's extents takes."""
    with ballast.open("ab") as stream:
        while True:
            found = os.statvfs(ballast.parent)
            size = found.f_bavail * found.f_frsize - leaving_bytes
            if size < found.f_frsize:
                return
            with suppress(OSError):  # ENOSPC: some of it is taken
                os.posix_fallocate(stream.fileno(), stream.seek(0, os.SEEK_END), size)
