"""The detection matrix: every sabotage committed, each in a run of its own, several at a time on several CPUs.

Runs are processes, not threads: a sabotage may put a wrapper script in the VMM's place by an environment variable.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

from ramet.errors import HostError, RametError
from ramet.model import Hypervisor
from ramet.verify import needs, runner, sabotage
from ramet.verify.reports.results import Matrix, MatrixRow
from ramet.verify.sabotage import SABOTAGES

AT_ONCE_MAX = 4
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all runs have in common."""

    home: Path
    hypervisor: str
    memory_mib: int


def run_all_sabotages(
    home: Path,
    *,
    hypervisor: str = "qemu",
    memory_mib: int = 256,
    on_progress: runner.Say | None = None,
    names: Sequence[str] = (),
) -> Matrix:
    """Commit every sabotage, or those of ``names``, and note which checks failed that do not fail without it.

    What the runs made is removed at the end, also if this is interrupted.

    Raises:
        ConfigError: for unknown names, or too little memory.
        RametError: if a run cannot begin.
        HostError: if the process of a run has ended without a word.
    """
    say = on_progress or (lambda text: None)
    began = time.monotonic()
    chosen = [sabotage.named(name) for name in names] or list(SABOTAGES.values())
    setting = Setting(home=home, hypervisor=hypervisor, memory_mib=memory_mib)
    host = runner.prepare(home, memory_mib, say)
    missing = needs.lacks(host.home)
    why_not = {one.name: one.why_not(Hypervisor(hypervisor), missing) for one in chosen}
    say("a run that nobody sabotages, for comparison")
    scenarios = tuple(dict.fromkeys(one.scenario for one in chosen))
    without = set(runner.run(home, hypervisor=hypervisor, memory_mib=memory_mib, scenarios=scenarios).failed())
    failed = dict(_commit([name for name, why in why_not.items() if why is None], setting, say))
    rows = [
        MatrixRow(
            sabotage=one.name,
            summary=one.summary,
            must_fail=one.caught_by,
            failed=tuple(claim for claim in failed.get(one.name, ()) if claim not in without),
            not_applicable=why_not[one.name],
        )
        for one in chosen
    ]
    return Matrix(
        host=runner.describe(host, Hypervisor(hypervisor), memory_mib),
        rows=tuple(rows),
        seconds=time.monotonic() - began,
    )


def _commit(names: Sequence[str], setting: Setting, say: runner.Say) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each sabotage, with the checks that failed, in the order in which they end."""
    waiting = list(reversed(names))
    begun = 0
    with ExitStack() as stack:
        count = min(AT_ONCE_MAX, os.cpu_count() or 1, len(names))
        idle = [stack.enter_context(_Worker(setting)) for _ in range(count)]
        busy: dict[Connection, _Worker] = {}
        while waiting or busy:
            while waiting and idle:
                worker, name = idle.pop(), waiting.pop()
                begun += 1
                say(f"sabotage {begun} of {len(names)}: {name}")
                worker.begin(name)
                busy[worker.connection] = worker
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                worker = busy.pop(connection)
                yield worker.sabotage, worker.result()
                idle.append(worker)


class _Worker:
    """A process that commits one sabotage after the other. Left in the middle of one, it removes what it has made and ends."""

    def __init__(self, setting: Setting) -> None:
        self.sabotage = ""
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(target=_serve, args=(theirs, setting))
        self._process.start()
        theirs.close()

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()
        if self.sabotage:
            self._process.terminate()
        self._process.join()

    def begin(self, name: str) -> None:
        self.sabotage = name
        self.connection.send(name)

    def result(self) -> tuple[str, ...]:
        """The checks that failed."""
        try:
            answer: tuple[str, ...] | RametError = self.connection.recv()
        except EOFError as err:
            self._process.join()
            raise HostError(
                f"The run with the sabotage {self.sabotage!r} ended without a word (status {self._process.exitcode}).",
                hint=f"See what it says: ramet verify --sabotage {self.sabotage}",
            ) from err
        self.sabotage = ""
        if isinstance(answer, RametError):
            raise answer
        return answer


def _serve(connection: Connection, setting: Setting) -> None:
    """In the process: commit what comes, until nothing more does. An ending signal is heard once."""
    for number in ENDING:
        signal.signal(number, _end)
    try:
        while True:
            name = connection.recv()
            connection.send(_failed(name, setting))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return


def _end(_number: int, _frame: FrameType | None) -> None:
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _failed(name: str, setting: Setting) -> tuple[str, ...] | RametError:
    try:
        report = runner.run(setting.home, hypervisor=setting.hypervisor, memory_mib=setting.memory_mib, sabotage=name)
    except RametError as err:
        return HostError(f"With the sabotage {name!r}: {err.message}", hint=err.hint)
    return report.failed()
