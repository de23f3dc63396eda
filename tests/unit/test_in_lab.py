"""In the lab: tests run when they are asked for, and what they report arrives outside as it was sent."""

from __future__ import annotations

import json
import os

import pytest

from tests.in_lab import Asked, Reporting, received

pytest_plugins = ["pytester"]

THREE_TESTS = """
import pytest

def test_passes():
    pass

def test_fails():
    assert 1 == 2

@pytest.mark.skip(reason="only elsewhere")
def test_is_skipped():
    pass
"""


def test_reports_arrive_as_they_were_sent(pytester: pytest.Pytester) -> None:
    """pytest's own summary refuses a skip whose reason is not a tuple, and ends the whole run."""
    pytester.makepyfile(THREE_TESTS)
    out_of, into = os.pipe()
    recorder = pytester.inline_run(plugins=[_Configured(into)])
    with os.fdopen(out_of) as stream:
        messages = [json.loads(line) for line in stream]
    sent = recorder.getreports("pytest_runtest_logreport")
    config = pytester.parseconfig()
    arrived = [received(config, message) for message in messages if "finished" not in message]
    assert [(one.nodeid, one.when, one.outcome) for one in arrived] == [
        (one.nodeid, one.when, one.outcome) for one in sent
    ]
    assert [one.longrepr for one in arrived if one.skipped] == [one.longrepr for one in sent if one.skipped]
    assert [str(one.longrepr) for one in arrived] == [str(one.longrepr) for one in sent]
    assert [message["finished"].split("::")[1] for message in messages if "finished" in message] == [
        "test_passes",
        "test_fails",
        "test_is_skipped",
    ]


LADDER = """
import pytest

done = []

@pytest.fixture(scope="session")
def store():
    done.append("made")
    yield
    print("\\nDONE", *done, "gone")

@pytest.fixture(scope="session")
def host_log(store):
    return done.append

@pytest.fixture
def host(store):
    done.append("begun")
    yield done.append
    done.append("ended")
"""
IN_TWO_PLACES = """
import pytest

@pytest.fixture(scope="module")
def guest(host_log):
    host_log("boots")
    yield
    host_log("stops")

@pytest.mark.parametrize("name", ["a", "b"])
def test_of(guest, host, name):
    host(name)
"""


def test_what_is_asked_for_runs_and_shares_what_lasts_until_the_next(
    pytester: pytest.Pytester, capfd: pytest.CaptureFixture[str]
) -> None:
    pytester.makeconftest(LADDER)
    for place in ("one", "other"):
        pytester.mkpydir(place).joinpath(f"test_{place}.py").write_text(IN_TWO_PLACES)
    out_of, into = os.pipe()
    with os.fdopen(into, "w") as stream:
        for asked in (
            ("other/test_other.py::test_of[a]", "other/test_other.py::test_of[b]"),
            ("other/test_other.py::test_of[b]", "one/test_one.py::test_of[b]"),
            ("one/test_one.py::test_of[b]", None),
            ("one/test_one.py::test_of[a]", None),
        ):
            stream.write(f"{json.dumps(asked)}\n")
    recorder = pytester.inline_run("-s", plugins=[Asked(out_of)])
    recorder.assertoutcome(passed=4)
    (line,) = [line for line in capfd.readouterr().out.splitlines() if line.startswith("DONE")]
    others, own = "boots begun a ended begun b ended stops", "boots begun {} ended stops"
    assert line == f"DONE made {others} {own.format('b')} {own.format('a')} gone"


class _Configured:
    """Registers ``Reporting`` as the conftest of the lab does."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def pytest_configure(self, config: pytest.Config) -> None:
        config.pluginmanager.register(Reporting(config, self._fd))
