"""Fingerprints of sparse memory files: against openssl, which reads the holes too, and several files at once."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bench.measure import Sample, Side, alternate, watch
from bench.place import Place
from bench.report import Row, Table, Target, ratio
from ramet.verify import fingerprints

SIZE_BYTES = 2 << 30
PIECE_BYTES = 64 << 20
"""Every other piece is random data, and the one after it a hole."""
AT_ONCE = 4
OURS, OPENSSL, SHA256SUM = "Ramet: SHA-256, holes not read", "openssl dgst -sha256", "sha256sum"
TOGETHER, ONE_BY_ONE = f"Ramet: {AT_ONCE} such files at once", f"Ramet: {AT_ONCE} such files, one after the other"
PAGES = "Ramet: SHA-256, and digests of all pages"


def measure(here: Place, *, rounds: int) -> list[Table]:
    """Hash files that are in the page cache, and compare the answers too. Leaves nothing."""
    directory = here.scratch / "fingerprints"
    directory.mkdir(mode=0o700)
    paths = [directory / f"memory-{number}" for number in range(AT_ONCE)]
    try:
        _make(paths[0])
        for path in paths[1:]:
            subprocess.run(["cp", "--sparse=always", "--reflink=auto", str(paths[0]), str(path)], check=True)
        return [_table(here, paths, rounds)]
    finally:
        for path in paths:
            path.unlink(missing_ok=True)
        directory.rmdir()


def _table(here: Place, paths: Sequence[Path], rounds: int) -> Table:
    answers: dict[str, str] = {}

    def ours() -> Sample:
        clock = watch()
        answers[OURS] = fingerprints.fingerprint(paths[0]).sha256
        return {OURS: clock.total()}

    def theirs(label: str, argv: Sequence[str], word: int) -> Sample:
        clock = watch()
        told = subprocess.run([*argv, str(paths[0])], check=True, capture_output=True, text=True).stdout
        answers[label] = told.split()[word]
        return {label: clock.total()}

    def one_by_one() -> Sample:
        clock = watch()
        for path in paths:
            fingerprints.fingerprint(path)
        return {ONE_BY_ONE: clock.total()}

    def together() -> Sample:
        clock = watch()
        fingerprints.fingerprints(paths[0].parent)
        return {TOGETHER: clock.total()}

    def pages() -> Sample:
        clock = watch()
        fingerprints.examine(paths[0], with_pages=True)
        return {PAGES: clock.total()}

    openssl = partial(theirs, OPENSSL, ["openssl", "dgst", "-sha256"], -1)
    sides: list[Side] = [ours, openssl, partial(theirs, SHA256SUM, ["sha256sum"], 0), one_by_one, together, pages]
    found = alternate(sides, rounds=rounds)
    if len(set(answers.values())) != 1:
        raise RuntimeError(f"the answers differ: {answers}")
    rows = [
        Row(label=OURS, values=found[OURS], against=OPENSSL),
        Row(label=OPENSSL, values=found[OPENSSL]),
        Row(label=SHA256SUM, values=found[SHA256SUM]),
        Row(label=TOGETHER, values=found[TOGETHER], against=ONE_BY_ONE),
        Row(label=ONE_BY_ONE, values=found[ONE_BY_ONE]),
        Row(label=PAGES, values=found[PAGES], against=OURS),
    ]
    speed = Target(
        text="fingerprint, speed against openssl",
        limit=0.9,
        measured=1 / ratio(rows, OURS, OPENSSL),
        at_most=False,
    )
    return Table(
        title="fingerprints of a memory file of 2 GiB, half of it holes",
        setting=here.setting,
        rows=rows,
        targets=[speed],
        notes=[f"{os.cpu_count()} CPUs; openssl and sha256sum read the holes; the three SHA-256 are equal"],
    )


def _make(path: Path) -> None:
    with path.open("wb") as stream:
        for start in range(0, SIZE_BYTES, 2 * PIECE_BYTES):
            stream.seek(start)
            stream.write(os.urandom(PIECE_BYTES))
        stream.truncate(SIZE_BYTES)
        os.fsync(stream.fileno())
