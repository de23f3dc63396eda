"""Files with holes."""

from __future__ import annotations

from pathlib import Path

MIB = 1 << 20


def sparse(path: Path, size_bytes: int, pieces: dict[int, bytes]) -> Path:
    with path.open("wb") as stream:
        stream.truncate(size_bytes)
        for offset, data in pieces.items():
            stream.seek(offset)
            stream.write(data)
    return path
