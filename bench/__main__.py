"""``python -m bench``: time Ramet against the raw mechanism and its peers, in one run.

Tables go to stdout as they are done, progress to stderr. It leaves nothing behind, however it ends.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from bench import fan_out, fingerprint, fork, pool, report, restore, scatter, share, standby, startup
from bench.measure import watch
from bench.place import Place, absent_peers, describe_host, kinds, place
from bench.report import Report, Table
from bench.source import Say, Source, source

FIGURES = ("restore", "pool", "standby", "fork", "fan-out", "share", "scatter", "startup", "fingerprint")
LARGE_MIB = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured. Without reflinks a large guest takes seconds a round, so it gets fewer."""

    figures: frozenset[str]
    rounds: int
    slow_rounds: int
    commands: int
    starts: int
    forks: int
    sleeps: tuple[int, ...]
    sharers: int
    dirty_mib: tuple[int, ...] = (1, 16, 64)

    def rounds_for(self, source: Source) -> int:
        slow = source.memory_mib > LARGE_MIB and not source.place.reflinks
        return self.slow_rounds if slow else self.rounds


FULL = Plan(
    figures=frozenset(FIGURES),
    rounds=12,
    slow_rounds=4,
    commands=200,
    starts=20,
    forks=64,
    sharers=25,
    sleeps=(1, 10, 25, 50),
)
QUICK = Plan(
    figures=frozenset(FIGURES),
    rounds=4,
    slow_rounds=3,
    commands=40,
    starts=8,
    forks=16,
    sharers=8,
    sleeps=(1, 10),
    dirty_mib=(1, 64),
)


def measure(here: Place, memory_mib: Sequence[int], plan: Plan, say: Say) -> list[Table]:
    """Every figure of one file system. ``say`` hears what begins."""
    tables: list[Table] = []
    if "fingerprint" in plan.figures:
        say(f"{here.setting}: fingerprints")
        tables += fingerprint.measure(here, rounds=plan.slow_rounds)
    if plan.figures == {"fingerprint"}:
        return tables
    with ExitStack() as stack:
        say(f"{here.setting}: building the image")
        here.host().image_build("micro")
        sources: list[Source] = []
        for mib in memory_mib:
            sources.append(stack.enter_context(source(here, mib, say)))
            say(f"{here.setting}, {mib} MiB: first standby")
            tables.append(standby.first(sources[-1], rounds=plan.slow_rounds))
        if "restore" in plan.figures:
            for one in sources:
                say(f"{here.setting}, {one.memory_mib} MiB: restore")
                tables.append(restore.measure(one, rounds=plan.rounds_for(one), read_rounds=plan.slow_rounds))
        if "pool" in plan.figures:
            for one in sources:
                say(f"{here.setting}, {one.memory_mib} MiB: claims from a pool")
                tables += pool.measure(one, rounds=plan.rounds_for(one))
        if "standby" in plan.figures:
            say(f"{here.setting}: second standby")
            dirty = plan.dirty_mib if here.reflinks else plan.dirty_mib[-1:]
            tables += standby.later(sources, dirty_mib=dirty, rounds=plan.slow_rounds)
        if "fork" in plan.figures:
            say(f"{here.setting}: fork")
            tables += fork.measure(sources, rounds=plan.rounds if here.reflinks else plan.slow_rounds)
        if "fan-out" in plan.figures and here.reflinks:
            say(f"{here.setting}: {plan.forks} forks at once")
            tables += fan_out.measure(sources[0], count=plan.forks, rounds=plan.slow_rounds)
        if "share" in plan.figures and here.reflinks:
            say(f"{here.setting}: {plan.sharers} forks that share memory")
            tables += share.measure(sources[0], count=plan.sharers, rounds=1)
        if "scatter" in plan.figures and here.reflinks:
            say(f"{here.setting}: sleeps after scattered writes")
            tables.append(scatter.measure(sources[0], say, sleeps=plan.sleeps))
        if "startup" in plan.figures:
            say(f"{here.setting}: commands and start-up")
            tables += startup.measure(sources[0], commands=plan.commands, starts=plan.starts)
    return tables


def run(options: argparse.Namespace) -> int:
    """Measure what was asked for; returns the exit status: 0, or 1 with --strict if a target was missed."""
    clock = watch()

    def say(text: str) -> None:
        print(f"bench: {clock.total():5.0f} s  {text}", file=sys.stderr, flush=True)

    found = Report(host=describe_host(), absent=absent_peers())
    print(report.heading(found), flush=True)
    for kind in kinds(options.home, options.file_systems):
        with place(kind, options.home) as here:
            memory = options.memory if here.reflinks or not options.quick else options.memory[:1]
            for table in measure(here, memory, options.plan, say):
                found.tables.append(table)
                print(report.text(table), flush=True)
    found.seconds = clock.total()
    print(report.closing(found), flush=True)
    if options.json:
        options.json.write_text(found.to_json() + "\n")
    return int(options.strict and not all(target.met for target in found.targets()))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; ``plan`` is what it amounts to."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="three minutes: fewer rounds, small guests where files are copied"
    )
    parser.add_argument("--home", type=Path, help="measure in this directory, not on loop devices (which need root)")
    parser.add_argument("--file-systems", type=_words(("xfs", "ext4", "btrfs")), default=["xfs", "ext4"], metavar="A,B")
    parser.add_argument("--memory", type=_sizes, default=[256, 2048], metavar="MIB,MIB", help="sizes of the guests")
    parser.add_argument("--only", type=_words(FIGURES), default=list(FIGURES), metavar="A,B", help=", ".join(FIGURES))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    parser.add_argument("--strict", action="store_true", help="exit with status 1 if a target is missed")
    options = parser.parse_args(arguments)
    base = QUICK if options.quick else FULL
    options.plan = replace(base, figures=frozenset(options.only))
    return options


def _words(known: Sequence[str]) -> Callable[[str], list[str]]:
    def words(text: str) -> list[str]:
        found = text.split(",")
        unknown = sorted(set(found) - set(known))
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)} is none of {', '.join(known)}")
        return found

    return words


def _sizes(text: str) -> list[int]:
    found = sorted(int(part) for part in text.split(","))
    if found[0] < 256:
        raise argparse.ArgumentTypeError("a guest needs 256 MiB: 128 of them are filled")
    return found


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
