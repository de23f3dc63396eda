"""The detection matrix: every sabotage committed, each in a run of its own, several at a time on several CPUs.

Runs are processes, not threads: a sabotage may put a wrapper script in the VMM's place by an environment variable.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

from ramet.errors import HostError, RametError
from ramet.linux import memory
from ramet.model import MIB, Hypervisor, MemoryPolicy
from ramet.signals import ENDING_SIGNALS, signals_held
from ramet.verify import needs, runner, sabotage
from ramet.verify.checks import Verdict
from ramet.verify.reports.results import Matrix, MatrixRow
from ramet.verify.sabotage import SABOTAGES, Sabotage

AT_ONCE_MAX = 4
GUESTS = 4
"""How many a scenario has at once, at most."""
VMM_MIB = 100
"""What a VMM takes besides its guest's memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all runs have in common."""

    home: Path
    hypervisor: str
    memory_mib: int
    memory_policy: MemoryPolicy


def run_all_sabotages(
    home: Path,
    *,
    hypervisor: str = "qemu",
    memory_mib: int = 256,
    memory_policy: MemoryPolicy = MemoryPolicy.CLONE,
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
    setting = Setting(home=home, hypervisor=hypervisor, memory_mib=memory_mib, memory_policy=memory_policy)
    host = runner.prepare(home, memory_mib, say)
    missing = needs.lacks(host, Hypervisor(hypervisor))
    why_not = {one.name: one.why_not(Hypervisor(hypervisor), missing, memory_policy) for one in chosen}
    say("a run that nobody sabotages, for comparison")
    scenarios = tuple(dict.fromkeys(one.scenario for one in chosen))
    sound = runner.run(
        home, hypervisor=hypervisor, memory_mib=memory_mib, memory_policy=memory_policy, scenarios=scenarios
    )
    committed: dict[str, _Run] = {}

    def commit(names: Sequence[str], workers: int) -> None:
        for name, run in _commit(names, setting, say, workers=workers):
            committed[name] = run
            row = _row(SABOTAGES[name], None, run, sound.failed())
            say(f"{name}: {'caught' if row.caught else 'MISSED' if row.missed else 'cut short'}")

    commit([name for name, why in why_not.items() if why is None], _workers(setting.memory_mib))
    rows = [_row(one, why_not[one.name], committed.get(one.name), sound.failed()) for one in chosen]
    again = [row.sabotage for row in rows if row.unknown]
    if again:  # a busy host may have cut them short: once more, one at a time
        commit(again, 1)
        rows = [_row(one, why_not[one.name], committed.get(one.name), sound.failed()) for one in chosen]
    return Matrix(
        host=runner.describe(host, Hypervisor(hypervisor), memory_mib, memory_policy),
        rows=tuple(rows),
        undecided=tuple(
            f"{result.scenario}.{result.claim.id}: {result.reason}"
            for result in sound.results
            if result.verdict is Verdict.INCONCLUSIVE and result.required
        ),
        seconds=time.monotonic() - began,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """What a sabotaged run came to."""

    failed: tuple[str, ...]
    cut_short: str | None


def _row(one: Sabotage, why_not: str | None, committed: _Run | None, failed_without: Sequence[str]) -> MatrixRow:
    return MatrixRow(
        sabotage=one.name,
        summary=one.summary,
        must_fail=one.caught_by,
        failed=tuple(claim for claim in committed.failed if claim not in failed_without) if committed else (),
        cut_short=committed.cut_short if committed else None,
        not_applicable=why_not,
    )


def _workers(memory_mib: int) -> int:
    """How many runs at once: as many as there are CPUs, and as there is memory for the guests of."""
    room = memory.available_bytes() // MIB // ((memory_mib + VMM_MIB) * GUESTS)
    return max(min(AT_ONCE_MAX, os.cpu_count() or 1, room), 1)


def _commit(names: Sequence[str], setting: Setting, say: runner.Say, *, workers: int) -> Iterator[tuple[str, _Run]]:
    """Each sabotage and what came of it, in the order in which they end."""
    waiting = list(reversed(names))
    begun = 0
    at_work: list[_Worker] = []
    try:
        at_work += (_Worker(setting) for _ in range(min(workers, len(names))))
        idle = list(at_work)
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
    finally:
        with signals_held():  # each removes what it has made first
            for worker in at_work:
                worker.stop()
            for worker in at_work:
                worker.wait()


class _Worker:
    """A process that commits one sabotage after the other. Left in the middle of one, it removes what it has made and ends."""

    def __init__(self, setting: Setting) -> None:
        self.sabotage = ""
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(target=_serve, args=(theirs, setting))
        self._process.start()
        theirs.close()

    def stop(self) -> None:
        """Ask it to end, whatever it is doing."""
        self.connection.close()
        if self.sabotage and self._process.is_alive():
            self._process.terminate()

    def wait(self) -> None:
        """Until it has ended."""
        self._process.join()

    def begin(self, name: str) -> None:
        self.sabotage = name
        with suppress(OSError):  # it has ended: whoever waits for its answer is told
            self.connection.send(name)

    def result(self) -> _Run:
        """What the run came to.

        Raises:
            HostError: if it could not begin, or its process has ended.
        """
        try:
            answer: _Run | RametError = self.connection.recv()
        except (EOFError, OSError) as err:
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
    for number in ENDING_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup(1) and the shell's & have it
            signal.signal(number, _end)
    try:
        while True:
            name = connection.recv()
            connection.send(_run(name, setting))
    except (EOFError, OSError, KeyboardInterrupt):
        return


def _end(_number: int, _frame: FrameType | None) -> None:
    for number in ENDING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _run(name: str, setting: Setting) -> _Run | RametError:
    try:
        report = runner.run(
            setting.home,
            hypervisor=setting.hypervisor,
            memory_mib=setting.memory_mib,
            memory_policy=setting.memory_policy,
            sabotage=name,
        )
    except RametError as err:
        return HostError(f"With the sabotage {name!r}: {err.message}", hint=err.hint)
    return _Run(failed=report.failed(), cut_short=report.cut_short)
