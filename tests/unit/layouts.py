"""Random sparse files: which blocks hold what, what is hole, and where the file ends."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

BLOCK = 4096


@dataclass(frozen=True)
class Layout:
    """``data`` maps block numbers to the bytes at their beginning; the rest up to ``size`` is hole."""

    size: int
    data: dict[int, bytes]


@st.composite
def layouts(draw: st.DrawFn, *, max_blocks: int = 48, whole_blocks: bool = False) -> Layout:
    """Up to ``max_blocks`` blocks, some with bytes, some with zeros that were written, some never written."""
    blocks = draw(st.integers(0, max_blocks))
    tail = 0 if whole_blocks else draw(st.integers(0, BLOCK - 1))
    size = blocks * BLOCK + tail
    last = blocks if tail else blocks - 1
    if last < 0:
        return Layout(size=size, data={})
    numbers = draw(st.sets(st.integers(0, last)))
    kinds = st.sampled_from([b"\0" * BLOCK, b"x" * BLOCK, b"data", bytes(range(1, 251)), b"\0" * (BLOCK - 1) + b"e"])
    return Layout(size=size, data={number: draw(kinds)[: size - number * BLOCK] for number in sorted(numbers)})


def write_layout(path: Path, layout: Layout) -> Path:
    """Make ``path`` anew with that layout."""
    path.unlink(missing_ok=True)
    with path.open("wb") as stream:
        stream.truncate(layout.size)
        for number, content in layout.data.items():
            stream.seek(number * BLOCK)
            stream.write(content)
    return path


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512
