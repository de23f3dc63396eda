"""What the tests with KVM run on, and which of them run in every `make test`."""

from __future__ import annotations

import os

WHOLE = os.environ.get("RAMET_TEST_ALL") == "1"
FILE_SYSTEMS = ["xfs", "ext4"] if WHOLE else ["xfs"]
"""Reflinks always, copies in `make test-all`, which is a lab of its own."""
