"""The command as a process: signals, and standard descriptors that are closed, full or gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ramet.cli.signals import Ending, TerminatedError
from ramet.model import Hypervisor
from ramet.signals import ENDING_SIGNALS
from tests.unit.instances.place import Place

HOST_STATUS = 8
BROKEN_PIPE_STATUS = 141
TIMEOUT_S = 30.0

CLEANING = """
import signal, sys
from ramet.cli import signals
signals.install()
try:
    print("ready", flush=True)
    signal.pause()
except KeyboardInterrupt as err:
    signals.over()
    print(signal.Signals(err.number).name, flush=True)
    sys.stdin.readline()                     # the other signals arrive before this
    print("cleaned up", flush=True)
"""


def ramet(home: Path, redirections: str, *words: str) -> subprocess.CompletedProcess[bytes]:
    """Run it as a shell would with these redirections."""
    script = f'exec "$@" {redirections}'
    command = ["sh", "-c", script, "sh", sys.executable, "-m", "ramet.cli", "--home", str(home), *words]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S, check=False)


@pytest.mark.parametrize("first", ENDING_SIGNALS)
def test_only_the_first_signal_raises(first: signal.Signals) -> None:
    """A second Ctrl-C must not cut off the thaw that the first one began."""
    with subprocess.Popen([sys.executable, "-c", CLEANING], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin
        assert child.stdout
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(first)
        assert child.stdout.readline() == f"{first.name}\n".encode()
        for number in ENDING_SIGNALS:
            child.send_signal(number)
        out, _ = child.communicate(b"\n", timeout=TIMEOUT_S)
    assert (child.returncode, out) == (0, b"cleaned up\n")


DROPPED = """
import os, signal, time
from ramet.cli import signals
class Finalized:
    def __del__(self):
        os.kill(os.getpid(), signal.{number})
def swallowing():
    try:
        os.kill(os.getpid(), signal.{number})
    except BaseException:
        pass
class Dropping:
    finalizer = staticmethod(Finalized)      # what it raises is printed, and that was that
    swallowing = staticmethod(swallowing)
signals.install()
try:
    Dropping.{by}()
    time.sleep(20)
    print("forgotten")
except KeyboardInterrupt as err:
    signals.over()
    print(signal.Signals(err.number).name)
time.sleep(0.05)
print("once")
"""


@pytest.mark.parametrize("by", ["finalizer", "swallowing"])
@pytest.mark.parametrize("number", ENDING_SIGNALS)
def test_a_signal_that_somebody_drops_comes_again(number: signal.Signals, by: str) -> None:
    argv = [sys.executable, "-c", DROPPED.format(number=number.name, by=by)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    assert (done.stdout, done.stderr) == (f"{number.name}\nonce\n", "")


HELD = """
import os, signal, time
from ramet.cli import signals
from ramet.signals import signals_held
signals.install()
try:
    with signals_held():
        with signals_held():
            os.kill(os.getpid(), signal.SIGINT)
        try:
            raise signals.TerminatedError(signal.SIGINT, signals._ending)
        except KeyboardInterrupt:
            pass
        time.sleep(0.05)
        print("held")
except KeyboardInterrupt:
    signals.over()
    print("raised")
"""


def test_a_signal_that_comes_again_is_held_as_any_other() -> None:
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    assert (done.stdout, done.stderr) == ("held\nraised\n", "")


AT_THE_END = """
import signal
from ramet.signals import ENDING_SIGNALS, signals_held

def handler(number, frame):
    raise KeyboardInterrupt(number)

def put_back(number, how, real=signal.signal):
    real(number, how)
    if how is handler and number == signal.SIGINT:
        signal.raise_signal(signal.SIGINT)  # the first is back, and the others are not

for number in ENDING_SIGNALS:
    signal.signal(number, handler)
try:
    with signals_held():
        signal.signal = put_back
except KeyboardInterrupt as err:
    print("raised", err)
for number in ENDING_SIGNALS:
    try:
        signal.raise_signal(number)
    except KeyboardInterrupt as err:
        print("raised", err)
print(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""


def test_a_signal_that_comes_while_handlers_are_put_back_loses_none() -> None:
    done = subprocess.run(
        [sys.executable, "-c", AT_THE_END], capture_output=True, text=True, timeout=TIMEOUT_S, check=True
    )
    expected = ["raised 2", *(f"raised {number.value}" for number in ENDING_SIGNALS), "set()"]
    assert (done.stdout.splitlines(), done.stderr) == (expected, "")


def test_what_is_ignored_stays_ignored_but_for_the_end_of_children() -> None:
    ignore = "import signal as s; [s.signal(n, s.SIG_IGN) for n in (s.SIGHUP, s.SIGCHLD)]"
    code = f"{ignore}; from ramet.cli import signals; signals.install(); print(s.getsignal(1), s.getsignal(17))"
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT_S, check=True
    ).stdout
    assert said == f"{signal.SIG_IGN} {signal.SIG_DFL}\n"


def test_a_termination_is_no_error_that_can_be_handled() -> None:
    ending = Ending()
    ending.is_over = True  # nothing comes again
    with pytest.raises(TerminatedError):
        ending(signal.SIGTERM, None)
    assert not issubclass(TerminatedError, Exception)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_descriptor_is_not_given_to_the_next_file(closed: str) -> None:
    code = "import os; from ramet.cli import terminal; terminal.claim_standard_descriptors(); os._exit(os.open('/', 0))"
    argv = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", code]
    assert subprocess.run(argv, timeout=TIMEOUT_S, check=False).returncode == 3


@pytest.mark.parametrize("words", [("ls",), ("ls", "--json"), ("image", "ls"), ("doctor",)])
@pytest.mark.parametrize("redirection", [">&-", ">/dev/full"])
def test_output_that_cannot_be_written_is_an_error(tmp_path: Path, words: tuple[str, ...], redirection: str) -> None:
    done = ramet(tmp_path / "home", redirection, *words)
    assert done.returncode == HOST_STATUS
    assert done.stderr.startswith(b"ramet: error: Could not write to standard output: ")
    assert len(done.stderr.splitlines()) == 1, "the interpreter complains once more"


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_an_error_that_nobody_can_be_told_is_still_in_the_status(tmp_path: Path, redirection: str) -> None:
    done = ramet(tmp_path / "home", redirection, "show", "web")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"", b"")


@pytest.mark.parametrize("words", [("ls",), ("doctor",), ("doctor", "--json")])
def test_a_reader_that_has_gone_ends_it_quietly(tmp_path: Path, words: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    argv = [sys.executable, "-m", "ramet.cli", "--home", str(tmp_path / "home"), *words]
    with os.fdopen(writer) as gone:
        done = subprocess.run(argv, stdout=gone, stderr=subprocess.PIPE, timeout=TIMEOUT_S, check=False)
    assert (done.returncode, done.stderr) == (BROKEN_PIPE_STATUS, b"")


def test_a_warning_of_the_library_is_one_line_for_a_person(tmp_path: Path) -> None:
    """Without ``--debug`` logging would print it bare, and with control characters as they are."""
    code = (
        "import logging; from ramet.cli import context; context.make_host(None, print); "
        "logging.getLogger('ramet.x').warning('hooks failed: %s', 'a\\x1b[2J')"
    )
    environment = {**os.environ, "RAMET_HOME": str(tmp_path / "home")}
    said = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=True
    )
    assert said.stderr == "ramet: warning: hooks failed: a\\x1b[2J\n"


LOOKING = """
import sys
from ramet.cli.main import run
status = run(["--home", sys.argv[1], "ls"])
print(status, [name for name in ("asyncio", "qemu.qmp", "http.client") if name in sys.modules])
"""


def test_a_verb_that_only_looks_loads_no_way_to_talk_to_a_vmm(tmp_path: Path) -> None:
    """With instances in the store too, of either hypervisor: they take longer to load than the rest takes to run."""
    place = Place(tmp_path / "home")
    place.change(hypervisor=Hypervisor.FIRECRACKER)
    done = subprocess.run(
        [sys.executable, "-c", LOOKING, str(tmp_path / "home")], capture_output=True, timeout=TIMEOUT_S, check=True
    )
    assert b"\nweb " in done.stdout
    assert done.stdout.splitlines()[-1] == b"0 []"
