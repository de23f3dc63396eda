"""A store with an image that nothing can boot, for what never boots one."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ramet.instances.host import Host
from ramet.model import Image

DIGEST = "0123456789abcdef" * 2


def with_image(home: Path) -> Host:
    """A store that says that it has the image ``micro``."""
    host = Host(home)
    directory = home / "images" / DIGEST
    directory.mkdir()
    image = Image(
        digest=DIGEST,
        name="micro",
        created_at_unix_s=0,
        kernel_version="6.1",
        kernel="kernel",
        initrd="initrd",
        cmdline="quiet",
        inputs={},
        size_bytes=2,
    )
    (directory / "image.json").write_bytes(msgspec.json.encode(image))
    for name in ("kernel", "initrd"):
        (directory / name).write_text("x")
    (home / "images" / "tags").mkdir(exist_ok=True)
    (home / "images" / "tags" / "micro").write_text(DIGEST)
    assert host.image_list() == [(image, ("micro",))]
    return host
