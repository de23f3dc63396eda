"""Debian packages that are used and not installed: downloaded by apt, which checks its signature chain, and unpacked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ramet import helpers
from ramet.errors import CommandError, HostError, host_errors
from ramet.guests.scratch import scratch

UNPACKED = ".unpack-"
DOWNLOAD_TIMEOUT_S = 600
UNPACK_TIMEOUT_S = 300


@contextmanager
def unpacked(package: str, packages: Path) -> Iterator[Path]:
    """The files of ``package``, unpacked for the block; the package itself is kept in the directory ``packages``.

    Raises:
        UnsupportedError: where there is no apt.
        CommandError, HostError: if it cannot be downloaded or unpacked.
    """
    dpkg_deb = helpers.find_program("dpkg-deb", package="dpkg")
    deb = download(package, packages)
    with ExitStack() as stack:
        with host_errors(f"make a directory in {packages}"):
            tree = stack.enter_context(scratch(packages, UNPACKED)) / package
        helpers.run([dpkg_deb, "-x", str(deb), str(tree)], timeout_s=UNPACK_TIMEOUT_S)
        yield tree


def download(package: str, packages: Path) -> Path:
    """Let apt fetch ``package`` into ``packages`` (nothing happens if it is there and whole); returns the file.

    Raises:
        UnsupportedError: where there is no apt.
        HostError: with what to do, if apt cannot.
    """
    apt_get = helpers.find_program("apt-get", package="apt")
    try:
        helpers.run([apt_get, "-q", "download", package], timeout_s=DOWNLOAD_TIMEOUT_S, cwd=packages)
    except CommandError as err:
        raise HostError(
            f"Could not download the Debian package {package}: {err.stderr_tail.strip()[-300:]}",
            hint="Check the network and apt's sources, run `apt-get update`, and try again.",
        ) from err
    found = sorted(packages.glob(f"{package}_*.deb"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise HostError(f"apt-get download {package} left no file in {packages}.")
    return found[-1]
