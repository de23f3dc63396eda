"""Where it is measured: a store of its own inside the user's, so on the same file system, which is gone afterwards.

$RAMET_HOME/bench-<tag>/
  home/      the store
  scratch/   files of the raw mechanism and of the peers

The lock of that name, in the user's store, is held while the run is at work: what nobody holds was left by one that was killed.
"""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ramet import process
from ramet.bench import libvirt
from ramet.errors import LockedError, RametError, UnsupportedError, host_errors
from ramet.instances.host import Host
from ramet.model import Image
from ramet.signals import signals_held
from ramet.store import atomic
from ramet.store.derive import probe_reflink
from ramet.store.locks import locked

IMAGE = "micro"
Say = Callable[[str], None]
_NAME = re.compile(r"bench-[0-9a-f]{6}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A store with the guest image in it, and room for the files of others."""

    directory: Path
    host: Host
    why_no_reflinks: str | None

    @property
    def reflinks(self) -> bool:
        """Whether files can be derived without copying."""
        return self.why_no_reflinks is None

    def require_reflinks(self, otherwise: str) -> None:
        """Where a figure makes no sense without them; ``otherwise`` says why.

        Raises:
            UnsupportedError: if there are none.
        """
        if self.why_no_reflinks is not None:
            raise UnsupportedError(
                f"This file system has no reflinks. {otherwise}",
                capability="reflink",
                why=self.why_no_reflinks,
                hint="Keep RAMET_HOME on XFS or btrfs.",
            )

    def image(self) -> tuple[Path, Image]:
        """The guest image and the directory that it is in."""
        image = next(image for image, tags in self.host.image_list() if IMAGE in tags)
        return self.host.home / "images" / image.digest, image

    @property
    def scratch(self) -> Path:
        """For the files of the raw mechanism and of the peers."""
        return self.directory / "scratch"


@contextmanager
def place(home: Path, say: Say) -> Iterator[Place]:
    """A store below ``home``, which gets the image ``micro`` if it has none; gone after the block, with all that runs in it.

    Raises:
        ConfigError: if ``home`` can be no store.
        HostError: if there is no room.
    """
    user = Host(home)
    remove_abandoned(user.home, say)
    if not any(IMAGE in tags for _, tags in user.image_list()):
        say(f"building the guest image {IMAGE}")
        user.image_build(IMAGE)
    directory = user.home / f"bench-{secrets.token_hex(3)}"
    with locked(user.home / "locks", directory.name):
        try:
            with host_errors(f"make {directory}"):
                directory.mkdir(mode=0o700)
            host = Host(directory / "home")
            with host_errors(f"copy the guest image to {directory}"):
                shutil.copytree(user.home / "images", host.home / "images", dirs_exist_ok=True)
                (directory / "scratch").mkdir()
            yield Place(directory=directory, host=host, why_no_reflinks=probe_reflink(directory))
        finally:
            with signals_held():  # a second Ctrl-C waits until nothing is left
                say("removing what was made")
                _remove(directory)


def remove_abandoned(home: Path, say: Say) -> None:
    """Remove what runs have left that were killed: their guests too.

    Raises:
        RametError: if it cannot be removed; the next run tries again.
    """
    found = {path.name for place in (home, home / "locks") for path in place.iterdir() if _NAME.fullmatch(path.name)}
    for directory in (home / name for name in sorted(found)):
        with suppress(LockedError), locked(home / "locks", directory.name, timeout_s=0):
            if not directory.is_dir():
                continue  # the lock alone was left, and goes
            say(f"removing what a run that was killed has left ({directory.name})")
            libvirt.destroy_abandoned(directory)
            _remove(directory)


def _remove(directory: Path) -> None:
    """End what runs, then delete; what cannot be ended keeps its files, for the next run to try again."""
    for _, vmm in process.marked_below(directory / "scratch"):
        process.kill_and_wait(vmm)
    if (directory / "home").exists():
        host = Host(directory / "home")
        failed: RametError | None = None
        for info in reversed(host.list()):
            try:
                host.remove(info.name, force=True)
            except RametError as err:  # the others go all the same
                failed = failed or err
        if failed is not None:
            raise failed
    if directory.exists():
        with host_errors(f"remove {directory}"):
            atomic.remove_tree(directory)
