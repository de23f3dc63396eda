"""Fingerprints of sparse memory files: against openssl, which reads the holes too, and several files at once."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ramet.bench.results import Figure, Role, Row, Target, ratio
from ramet.bench.samples import Sample, Side, alternate, watch
from ramet.bench.work import Benchmark, Work
from ramet.verify import fingerprints

SIZE_BYTES = 2 << 30
PIECE_BYTES = 64 << 20
"""Every other piece is random data, and the one after it a hole."""
AT_ONCE = 4
OURS, OPENSSL, SHA256SUM = "Ramet: SHA-256, holes not read", "openssl dgst -sha256", "sha256sum"
TOGETHER, ONE_BY_ONE = f"Ramet: {AT_ONCE} such files at once", f"Ramet: {AT_ONCE} such files, one after the other"
PAGES = "Ramet: SHA-256, and digests of all pages"


def measure(work: Work) -> list[Figure]:
    """Hash files that are in the page cache, and compare the answers too. Leaves nothing."""
    directory = work.place.scratch / "fingerprints"
    directory.mkdir(mode=0o700)
    paths = [directory / f"memory-{number}" for number in range(AT_ONCE)]
    try:
        _make(paths[0])
        for path in paths[1:]:
            subprocess.run(["cp", "--sparse=always", "--reflink=auto", str(paths[0]), str(path)], check=True)
        return [_figure(paths, work.plan.slow_rounds)]
    finally:
        for path in paths:
            path.unlink(missing_ok=True)
        directory.rmdir()


def _figure(paths: Sequence[Path], rounds: int) -> Figure:
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
        Row(id="ours", label=OURS, values=found[OURS], against="openssl"),
        Row(id="openssl", label=OPENSSL, values=found[OPENSSL], role=Role.PEER),
        Row(id="sha256sum", label=SHA256SUM, values=found[SHA256SUM], role=Role.PEER),
        Row(id="together", label=TOGETHER, values=found[TOGETHER], against="one-by-one"),
        Row(id="one-by-one", label=ONE_BY_ONE, values=found[ONE_BY_ONE]),
        Row(id="pages", label=PAGES, values=found[PAGES], against="ours"),
    ]
    speed = Target(
        text="fingerprint, speed against openssl",
        limit=0.9,
        measured=1 / ratio(rows, "ours", "openssl"),
        at_most=False,
    )
    return Figure(
        id="fingerprint",
        title="fingerprints of a memory file of 2 GiB, half of it holes",
        setting=f"{os.cpu_count()} CPUs",
        rows=rows,
        targets=[speed],
        notes=["openssl and sha256sum read the holes; the three SHA-256 are equal"],
    )


def _make(path: Path) -> None:
    with path.open("wb") as stream:
        for start in range(0, SIZE_BYTES, 2 * PIECE_BYTES):
            stream.seek(start)
            stream.write(os.urandom(PIECE_BYTES))
        stream.truncate(SIZE_BYTES)
        os.fsync(stream.fileno())


BENCHMARK = Benchmark(name="fingerprint", summary="fingerprints of sparse memory files", measure=measure)
