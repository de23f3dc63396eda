"""Small things that are done often: a command in a running guest, and starting the program itself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.measure import Sample, Side, alternate, percentile, watch
from bench.report import Row, Table, Target
from bench.source import Source

VERSION = "ramet --version"


def measure(source: Source, *, commands: int, starts: int) -> list[Table]:
    """Wake a sleeping guest, run commands in it, run the program. Leaves it asleep."""
    source.host.restore(source.name)
    try:
        return [_commands(source, commands), _starts(source, starts)]
    finally:
        source.host.standby(source.name)


def _commands(source: Source, count: int) -> Table:
    def command() -> Sample:
        clock = watch()
        source.run("true")
        return {"command": clock.total()}

    def ping() -> Sample:
        clock = watch()
        source.host.ping(source.name)
        return {"ping": clock.total()}

    found = alternate([command, ping], rounds=count)
    late = {name: percentile(values, 0.95) for name, values in found.items()}
    return Table(
        title="a running guest, from one Python process",
        setting=source.setting,
        rows=[
            Row(label="exec true", values=found["command"]),
            Row(label="  95 % within", values=[late["command"]]),
            Row(label="ping of the agent", values=found["ping"]),
            Row(label="  95 % within", values=[late["ping"]]),
        ],
    )


def _starts(source: Source, count: int) -> Table:
    program = str(Path(sys.executable).with_name("ramet"))
    wanted: dict[str, Sequence[str]] = {
        "python -c pass": [sys.executable, "-c", "pass"],
        VERSION: [program, "--version"],
        "ramet ls": [program, "ls"],
        "ramet exec NAME -- true": [program, "exec", source.name, "--", "true"],
    }
    environment = {**os.environ, "RAMET_HOME": str(source.host.home)}

    def side(label: str) -> Side:
        def start() -> Sample:
            clock = watch()
            subprocess.run(
                wanted[label], env=environment, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
            return {label: clock.total()}

        return start

    found = alternate([side(label) for label in wanted], rounds=count)
    rows = [Row(label=label, values=found[label]) for label in wanted]
    median = sorted(found[VERSION])[count // 2]
    return Table(
        title="processes, from start to end",
        setting="one instance in the store",
        rows=rows,
        targets=[Target(text=f"{VERSION}, in seconds,", limit=0.1, measured=median)],
    )
