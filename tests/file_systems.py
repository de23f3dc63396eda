"""What tests run on in every `make test`, and what in `make test-all` besides."""

from __future__ import annotations

import os

WHOLE = os.environ.get("RAMET_TEST_ALL") == "1"
ON_XFS = ["xfs", "ext4"] if WHOLE else ["xfs"]
"""With reflinks always, on copies in `make test-all`."""
ON_EXT4 = ["ext4", "xfs"] if WHOLE else ["ext4"]
"""On copies always, with reflinks in `make test-all`."""
