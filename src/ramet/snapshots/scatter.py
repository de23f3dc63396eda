"""When a memory file is written whole instead of being cloned once more (H73).

A clone takes as many steps as its source has extents, and a diff of scattered pages cuts the file into two more for each: after
50 sleeps with 1,000 such pages each, XFS and btrfs take a second to clone 256 MiB (measured), and a fork that wakes clones it
twice. A copy puts all into few extents again. It is made where a guest goes to sleep, so that forks and restores do not pay; and
only for pieces that this instance has written itself, so that no fork takes a copy's room for what its source has scattered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ramet.errors import host_errors
from ramet.model import MIB, Method
from ramet.store.derive import ANY_METHOD

PIECES_MAX: Final = 4096
"""That diffs may have written into a file of 256 MiB before it is worth a copy; of a larger one more, by the square root of its
size: what a copy costs grows with the size, and what it saves with the pieces."""
WORTH_BYTES: Final = 256 * MIB
WAITING_FACTOR: Final = 4
"""So many more, while a guest waits for the end of the capture and does not sleep."""
COPY: Final = frozenset({Method.COPY})


@dataclass(frozen=True, slots=True, kw_only=True)
class Scatter:
    """Of a memory file that is about to be derived."""

    pieces: int = 0
    """That this instance's diffs have written into it since it was last written whole."""
    guest_waits: bool = True

    def how_to_derive(self, base: Path, more: int) -> frozenset[Method]:
        """The methods that may be used for a derivation of ``base`` that gets ``more`` pieces.

        Raises:
            HostError: if ``base`` cannot be looked at.
        """
        with host_errors(f"look at {base}"):
            data_bytes = base.stat().st_blocks * 512
        allowed = PIECES_MAX * math.sqrt(max(data_bytes / WORTH_BYTES, 1)) * (WAITING_FACTOR if self.guest_waits else 1)
        return COPY if self.pieces + more > allowed else ANY_METHOD

    def after(self, method: Method | None, more: int) -> int:
        """The pieces of what was derived so, and got ``more``."""
        return self.pieces + more if method is Method.REFLINK else 0
