"""What a failed VM test leaves for the person who looks into it: logs, command lines and manifests in one folder."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from ramet import Host, process

DIRECTORY = Path(__file__).parent.parent / "artifacts"
_FAILED = pytest.StashKey[bool]()
TAIL_CHARACTERS = 3000
KEPT_SUFFIXES = {".log", ".json"}
TOLD = "told"
"""The property of a test that the summary prints: how much it tried, and what came of it."""


def remember(item: pytest.Item, report: pytest.TestReport) -> None:
    """Note that the test (not its set-up or tear-down alone) failed."""
    item.stash[_FAILED] = item.stash.get(_FAILED, False) or report.failed


def failed(item: pytest.Item) -> bool:
    return item.stash.get(_FAILED, False)


def keep(host: Host, test_id: str) -> None:
    """Copy all logs, records and manifests of the store into a folder named after the test, and print where it is."""
    target = DIRECTORY / re.sub(r"[^A-Za-z0-9_.-]+", "_", test_id)[-150:]
    shutil.rmtree(target, ignore_errors=True)
    for place in ("instances", "snapshots"):
        for path in (host.home / place).rglob("*"):
            if path.suffix in KEPT_SUFFIXES and path.is_file():
                copy = target / path.relative_to(host.home)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes())
                if in_the_lab() and path.suffix == ".log":  # whose files are gone with it
                    print(f"\n-- {path.name} of {path.parent.parent.name}:\n{_tail(path)}")
    print(f"\nkept: {target}")


def in_the_lab() -> bool:
    """Whether this process runs in a lab."""
    return os.environ.get("RAMET_LAB") == "1"


def _tail(path: Path) -> str:
    return path.read_text(errors="replace")[-TAIL_CHARACTERS:]


def vmm_pids(*stores: str) -> set[int]:
    """The VMMs that are marked as of a run directory with one of these pieces in its path."""
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        marks = [one for one in environment if one.startswith(process.VMM_MARK.encode() + b"=")]
        if any(store.encode() in mark for store in stores for mark in marks):
            found.add(int(entry.name))
    return found


def users_of(place: Path) -> list[str]:
    """The processes that have something of ``place`` open or mapped, or are in it: what keeps it from being unmounted."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        held = set()
        with suppress(OSError):  # it has ended
            for link in (entry / "cwd", entry / "root", entry / "exe", *(entry / "fd").iterdir()):
                with suppress(OSError):  # closed meanwhile; a process that is ending has none
                    held.add(str(link.readlink()))
            held.update(
                line.split(maxsplit=5)[-1] for line in (entry / "maps").read_text(errors="replace").splitlines()
            )
        if below := sorted(one for one in held if Path(one).is_relative_to(place)):
            with suppress(OSError):
                found.append(f"{entry.name} ({(entry / 'comm').read_text().strip()}): {', '.join(below)}")
    return found
