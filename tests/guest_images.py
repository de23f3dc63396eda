"""The guest image ``micro``, built once for the whole session and copied into each store that wants it."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path

from ramet import Host

VARIABLE = "RAMET_TEST_IMAGES"
"""Where they are already: set for a pytest in the lab, where building one takes a minute."""


@functools.cache
def built() -> Path:
    """A store's directory of images, with ``micro`` in it; not to be written to."""
    given = os.environ.get(VARIABLE)
    if given:
        return Path(given)
    home = Path(tempfile.mkdtemp(prefix="ramet-test-images-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    Host(home).image_build("micro")
    return home / "images"


def give(home: Path) -> Path:
    """Put the image into the store ``home``, which is made if it is not there; returns ``home``."""
    Host(home)
    shutil.copytree(built(), home / "images", dirs_exist_ok=True)
    return home
