"""What tests run on in every `make test`, and what in `make test-all` besides."""

from __future__ import annotations

import os

import pytest

WHOLE = os.environ.get("RAMET_TEST_ALL") == "1"
ON_XFS = ["xfs", "ext4"] if WHOLE else ["xfs"]
"""With reflinks always, on copies in `make test-all`."""
ON_EXT4 = ["ext4", "xfs"] if WHOLE else ["ext4"]
"""On copies always, with reflinks in `make test-all`: for what does not depend on how files are derived."""
on_ext4 = pytest.mark.parametrize("file_system", ON_EXT4, indirect=True)
on_xfs = pytest.mark.parametrize("file_system", ON_XFS, indirect=True)
