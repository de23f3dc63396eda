"""Which file systems the tests with KVM run on: reflinks always, copies in `make test-all`, which is a lab of its own."""

from __future__ import annotations

import os

WHOLE = os.environ.get("RAMET_TEST_ALL") == "1"
FILE_SYSTEMS = ["xfs", "ext4"] if WHOLE else ["xfs"]
