"""Tests that need KVM, on a host that has none: they run in the lab, and report here as if they ran here.

One lab per kind of file system and process that runs tests, with one pytest in it, started when its first test's turn has come.
It runs what it is asked for, one test after the other, and is told which comes next: where several processes share the tests,
more is not known. Those tests come last. On a host with usable KVM this does nothing.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import pytest

from ramet.helpers import die_with_parent
from tests import guest_images
from tests.capabilities import needs, why_missing, why_no_kvm_here
from tests.file_systems import WHOLE

ROOT = Path(__file__).parent.parent
DISK = Path("/run/lab/disk")
DISK_SIZE = "16G"
MEMORY_MIB = 10 * 1024 if WHOLE else 6 * 1024
LAB_ENDS_AFTER_S = 120 * 60
SILENCE_S = 1260.0
"""Longer than any test's own limit, which tells more: a lab that says nothing for so long hangs."""
ENDS_WITHIN_S = 600.0
REPORTS_FD, REQUESTS_FD = "RAMET_TEST_REPORTS_FD", "RAMET_TEST_REQUESTS_FD"
TAIL_LINES = 40


class Reporting:
    """In the lab: send each report to the pytest outside, one line of JSON each."""

    def __init__(self, config: pytest.Config, fd: int) -> None:
        self._config = config
        self._stream = os.fdopen(fd, "w", buffering=1)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._stream.write(json.dumps(data) + "\n")

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._stream.write(json.dumps({"finished": nodeid}) + "\n")

    def pytest_unconfigure(self) -> None:
        self._stream.close()


class Asked:
    """In the lab: run each test when the pytest outside asks for it: a line of JSON with its id, and that of the next or null."""

    def __init__(self, fd: int) -> None:
        self._stream = os.fdopen(fd)

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        for line in self._stream:
            nodeid, next_nodeid = json.loads(line)
            # Where nothing is known to come next, what belongs to the session, such as the store, is kept all the same.
            then = items[next_nodeid] if next_nodeid is not None else cast(pytest.Item, session)
            items[nodeid].config.hook.pytest_runtest_protocol(item=items[nodeid], nextitem=then)
        return True

    def pytest_unconfigure(self) -> None:
        self._stream.close()


def received(config: pytest.Config, message: dict[str, Any]) -> pytest.TestReport:
    """The report that ``Reporting`` sent."""
    report: pytest.TestReport = config.hook.pytest_report_from_serializable(config=config, data=message)
    if isinstance(report.longrepr, list):
        report.longrepr = tuple(report.longrepr)  # a skip's path, line and reason: JSON has no tuples, pytest insists
    return report


class _Lab:
    """One lab, and the reports that come out of it."""

    def __init__(self, kind: str, nodeids: list[str], options: list[str]) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the lab
        scratch = f"--basetemp={DISK / 'tmp'}"  # a memory file needs a file system with real holes
        inner = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", scratch, *options, *nodeids]
        argv = [sys.executable, "-m", "lab", "--disk", f"{kind}:{DISK_SIZE}", "--memory", str(MEMORY_MIB)]
        argv += ["--timeout", str(LAB_ENDS_AFTER_S), "--", "sh", "-c", 'exec "$@" 3>&1 1>&2 4<&0', "sh", *inner]
        env = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_XDIST_")}
        env |= {REPORTS_FD: "3", REQUESTS_FD: "4", guest_images.VARIABLE: str(guest_images.built())}
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=ROOT,
            env=env,
            # It would finish the test that it is at if this process is killed.
            preexec_fn=partial(die_with_parent, os.getpid(), by=signal.SIGTERM),
        )
        self._buffer = b""

    def ask(self, nodeid: str, next_nodeid: str | None) -> None:
        """Have a test run; its reports are among the next messages. The next one is asked for next, if it is known.

        Raises:
            BrokenPipeError: if the lab has ended.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([nodeid, next_nodeid]).encode() + b"\n")
        self._process.stdin.flush()

    def messages(self) -> Iterator[dict[str, Any]]:
        """What the pytest inside says, until it ends.

        Raises:
            TimeoutError: if it has said nothing for too long.
        """
        stream: IO[bytes] | None = self._process.stdout
        assert stream is not None
        while True:
            line, newline, rest = self._buffer.partition(b"\n")
            if newline:
                self._buffer = rest
                yield json.loads(line)
                continue
            if not select.select([stream], [], [], SILENCE_S)[0]:
                raise TimeoutError(f"the lab has said nothing for {SILENCE_S:g} s")
            data = os.read(stream.fileno(), 1 << 16)
            if not data:
                return
            self._buffer += data

    def finish(self) -> None:
        """Let it end: nothing more is asked for.

        Raises:
            RuntimeError: if it does not, or if what it has to do at its end fails.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(ENDS_WITHIN_S)
            if self._process.poll() not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
                raise RuntimeError(self.last_words())
        finally:
            self.end()

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(30)
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()

    def last_words(self) -> str:
        self._log.seek(0)
        tail = self._log.read().decode(errors="replace").splitlines()[-TAIL_LINES:]
        return "\n".join([f"The lab ended with status {self._process.poll()}. Its last lines:", *tail])


class LabRunner:
    """Outside: run the tests that ``belongs`` picks in a lab."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._labs: dict[str, _Lab] = {}
        self._ours: set[str] = set()
        self._of_kind: dict[str, list[str]] = {}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Ours come last, one file system after the other."""
        ours = sorted((item for item in items if belongs(item)), key=_kind_of)
        self._ours = {item.nodeid for item in ours}
        for item in ours:
            item.add_marker(pytest.mark.timeout(0))  # the pytest inside has the limit
            self._of_kind.setdefault(_kind_of(item), []).append(item.nodeid)
        items[:] = [item for item in items if item.nodeid not in self._ours] + ours

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        if item.nodeid not in self._ours:
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._reports(item, nextitem):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def pytest_sessionfinish(self) -> None:
        while self._labs:
            self._labs.popitem()[1].finish()

    def _reports(self, item: pytest.Item, nextitem: pytest.Item | None) -> list[pytest.TestReport]:
        """What came of a test in the lab; the next test gets a new lab if this one ended or hung."""
        kind = _kind_of(item)
        began = time.time()
        if kind not in self._labs:
            while self._labs:
                self._labs.popitem()[1].finish()
            self._labs[kind] = _Lab(kind, self._of_kind[kind], self._options())
        lab = self._labs[kind]
        reports: list[pytest.TestReport] = []
        try:
            follows = nextitem is not None and nextitem.nodeid in self._of_kind[kind]
            lab.ask(item.nodeid, nextitem.nodeid if nextitem is not None and follows else None)
            for message in lab.messages():
                if message.get("finished") == item.nodeid:
                    return reports
                if message.get("nodeid") == item.nodeid:
                    reports.append(received(self._config, message))
            why = "the lab ended before this test did"
        except (TimeoutError, BrokenPipeError, ValueError) as err:
            why = str(err)
        self._labs.pop(kind).end()
        failure = pytest.TestReport(
            nodeid=item.nodeid,
            location=item.location,
            keywords={},
            outcome="failed",
            longrepr=f"{why}\n{lab.last_words()}",
            when="call",
            start=began,
            stop=time.time(),
        )
        return [failure]

    def _options(self) -> list[str]:
        return [f"--require={self._config.getoption('--require')}", "-m", "vm or not vm"]


def belongs(item: pytest.Item) -> bool:
    """Whether a test needs KVM, and this host has none of its own."""
    return "kvm" in needs(item) and why_no_kvm_here() is not None and not any(map(why_missing, needs(item)))


def _kind_of(item: pytest.Item) -> str:
    callspec = getattr(item, "callspec", None)
    return "xfs" if callspec is None else callspec.params.get("file_system", "xfs")
