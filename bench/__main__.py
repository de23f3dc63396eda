"""``python -m bench``: what ``ramet bench`` measures and some more for developers, on fresh file systems, held to its targets.

Tables go to stdout as a file system is done, progress to stderr. It leaves nothing behind, however it ends.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import msgspec

from bench import fingerprint, startup, upkeep
from ramet.bench import documents, runner, text
from ramet.bench.benchmarks.catalogue import BENCHMARKS
from ramet.bench.documents import BenchDocument
from ramet.bench.samples import watch
from ramet.bench.work import FULL, QUICK, Benchmark
from ramet.model import Hypervisor, MemoryPolicy
from tools import loopfs

DISK_MIB = 16 * 1024
ALL: dict[str, Benchmark] = {
    **BENCHMARKS,
    **{one.BENCHMARK.name: one.BENCHMARK for one in (upkeep, startup, fingerprint)},
}


@contextmanager
def home_on(kind: str, home: Path | None) -> Iterator[Path]:
    """A store on a fresh ``kind`` of file system, on a loop device that is gone after the block; or ``home``."""
    if home is not None:
        home.mkdir(parents=True, exist_ok=True)
        yield home
        return
    why = loopfs.why_not()
    if why is not None:
        raise SystemExit(f"bench: {why}; give it a directory: python -m bench --home DIRECTORY")
    with loopfs.loopfs(kind, size_mib=DISK_MIB, sparse=False) as mount:
        yield mount / "home"


def run(options: argparse.Namespace) -> int:
    """Measure what was asked for; returns the exit status: 0, or 1 with --strict if a target was missed."""
    clock = watch()

    def say(told: str) -> None:
        print(f"bench: {clock.total():5.0f} s  {told}", file=sys.stderr, flush=True)

    found: list[BenchDocument] = []
    for kind in ["its file system"] if options.home else options.file_systems:
        with home_on(kind, options.home) as home:
            say(kind)
            report = runner.measure(
                home,
                [ALL[name] for name in ALL if name in options.only],
                hypervisor=Hypervisor(options.hypervisor) if options.hypervisor else None,
                memory_mib=options.memory,
                memory_policy=MemoryPolicy(options.memory_policy),
                plan=QUICK if options.quick else FULL,
                against=True,
                say=say,
            )
        found.append(documents.document(report))
        print(text.render(found[-1]), end="\n\n", flush=True)
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    figures = [figure for document in found for one in document.benchmarks for figure in one.figures]
    return int(options.strict and not all(target.met for figure in figures for target in figure.targets))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, smaller guests")
    parser.add_argument("--home", type=Path, help="measure in this store, not on loop devices (which need root)")
    parser.add_argument("--file-systems", nargs="+", choices=("xfs", "ext4", "btrfs"), default=["xfs", "ext4"])
    parser.add_argument("--hypervisor", choices=[one.value for one in Hypervisor])
    parser.add_argument("--memory", type=int, default=256, metavar="MIB", help="of the guest that is measured")
    parser.add_argument("--memory-policy", choices=[one.value for one in MemoryPolicy], default="clone")
    parser.add_argument("--only", nargs="+", choices=list(ALL), default=list(ALL), metavar="NAME", help=", ".join(ALL))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    parser.add_argument("--strict", action="store_true", help="exit with status 1 if a target is missed")
    return parser.parse_args(arguments)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Run; SIGTERM ends it as Ctrl-C does, with everything cleaned up."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return run(parse(sys.argv[1:]))
    except KeyboardInterrupt:
        print("bench: interrupted; nothing is left behind", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
