"""The QEMU that emulates the lab: the host's if it is new enough, else the newer one that Debian has for this release.

QEMU 7.2 hangs: while the lab's KVM patches its running kernel (static keys, at the first VM and the last), one CPU may keep a
translation of a breakpoint that is gone. It did so in eight runs of 150 VMs out of eight, 10.0 in none of seven.
"""

from __future__ import annotations

import os
import platform
import re
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from ramet import helpers
from ramet.errors import CommandError, HostError, UnsupportedError, host_errors

VARIABLE = "RAMET_LAB_QEMU"
PROGRAM = "qemu-system-x86_64"
PROGRAM_IN_TREE = f"usr/bin/{PROGRAM}"
OLDEST = (8, 2)
BACKPORTS_OF = "bookworm"
SOURCE = (
    "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
    f" http://deb.debian.org/debian {BACKPORTS_OF}-backports main\n"
)
PACKAGES = ("qemu-system-x86", "qemu-system-data", "seabios")
DOWNLOAD_TIMEOUT_S = 300
UNPACK_TIMEOUT_S = 120


def command(cache_dir: Path) -> list[str]:
    """The program and its first options: what ``$RAMET_LAB_QEMU`` names, else the host's, else a newer one in ``cache_dir``.

    Raises:
        UnsupportedError: if the host has no QEMU, or an old one and no newer one is known.
        HostError: if the newer one cannot be downloaded; the cache holds no half of it.
    """
    program = helpers.find_program(PROGRAM, package="qemu-system-x86", variable=VARIABLE)
    if VARIABLE in os.environ or is_new_enough(version := _version_of(program)):
        return [program]
    tree = cache_dir / "lab" / f"qemu-{BACKPORTS_OF}-backports"
    if not tree.exists():
        _fetch(tree, has=version)
    share = tree / "usr/share"
    return [str(tree / PROGRAM_IN_TREE), "-L", str(share / "qemu"), "-L", str(share / "seabios")]


def is_new_enough(version: str) -> bool:
    """Whether the QEMU that calls itself so ("QEMU emulator version 7.2.22 (Debian …)") runs the lab without hanging."""
    found = re.search(r"version (\d+)\.(\d+)", version)
    return found is not None and (int(found[1]), int(found[2])) >= OLDEST


def _fetch(tree: Path, *, has: str) -> None:
    """Unpack Debian's packages, whose signatures apt checks, into ``tree``: all of them, or nothing."""
    release = ""
    with suppress(OSError):
        release = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    if release != BACKPORTS_OF:
        raise UnsupportedError(
            f"The lab hangs under this host's QEMU ({has}).",
            capability="lab",
            why=f"QEMU is older than {OLDEST[0]}.{OLDEST[1]}",
            hint=f"Install a newer one, or set {VARIABLE} to its {PROGRAM}.",
        )
    apt_get = helpers.find_program("apt-get", package="apt")
    with host_errors(f"fetch QEMU into {tree.parent}"):
        tree.parent.mkdir(parents=True, exist_ok=True)
        _fetch_from(apt_get, tree, has=has)


def _fetch_from(apt_get: str, tree: Path, *, has: str) -> None:
    with TemporaryDirectory(prefix=".qemu-", dir=tree.parent) as name:
        scratch = Path(name)
        (scratch / "sources.list").write_text(SOURCE)
        (scratch / "lists").mkdir()
        options = [f"Dir::Etc::SourceList={scratch}/sources.list", "Dir::Etc::SourceParts=/dev/null"]
        options += [f"Dir::State::Lists={scratch}/lists", f"Dir::Cache={scratch}", "APT::Sandbox::User=root"]
        apt = [apt_get, "-q", *(word for option in options for word in ("-o", option))]
        try:
            helpers.run([*apt, "update"], timeout_s=DOWNLOAD_TIMEOUT_S, cwd=scratch)
            helpers.run([*apt, "download", *PACKAGES], timeout_s=DOWNLOAD_TIMEOUT_S, cwd=scratch)
        except CommandError as err:
            raise HostError(
                f"Could not download a newer QEMU for the lab (this host's: {has}): {err.stderr_tail.strip()[-300:]}",
                hint=f"Check the network and try again, or set {VARIABLE} to a {PROGRAM} from {OLDEST[0]}.{OLDEST[1]} on.",
            ) from err
        for deb in scratch.glob("*.deb"):
            helpers.run(["dpkg-deb", "-x", str(deb), str(scratch / "tree")], timeout_s=UNPACK_TIMEOUT_S)
        _require_new_enough(scratch / "tree" / PROGRAM_IN_TREE)
        try:
            (scratch / "tree").rename(tree)
        except OSError:
            if not tree.exists():  # two labs may fetch at once, and either result will do
                raise


def _version_of(program: str) -> str:
    """The line in which a QEMU says what it is."""
    return helpers.run([program, "--version"], timeout_s=20).stdout.decode(errors="replace").partition("\n")[0]


def _require_new_enough(program: Path) -> None:
    """Nothing is kept that does not run here."""
    try:
        found = _version_of(str(program))
    except CommandError as err:
        found = err.stderr_tail.strip()[-300:]
    if not is_new_enough(found):
        raise HostError(
            f"Debian's newer QEMU does not run on this host: {found}",
            hint=f"Set {VARIABLE} to a {PROGRAM} from {OLDEST[0]}.{OLDEST[1]} on.",
        )
