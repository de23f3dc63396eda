"""One bit of a file, flipped."""

from __future__ import annotations

from pathlib import Path


def flip(path: Path, offset: int) -> None:
    """Change the lowest bit of the byte at ``offset``; the mode stays."""
    mode = path.stat().st_mode & 0o777
    path.chmod(0o600)
    with path.open("r+b") as stream:
        stream.seek(offset)
        (byte,) = stream.read(1)
        stream.seek(offset)
        stream.write(bytes([byte ^ 1]))
    path.chmod(mode)
