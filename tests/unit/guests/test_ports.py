"""The agent's ports: one client each, under a lock that goes with its holder (H72)."""

from __future__ import annotations

import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from ramet.errors import GuestTimeoutError, HostError, VmmDiedError
from ramet.guests import sessions
from ramet.guests.client import AgentClient
from ramet.guests.ports import take_port
from ramet.guests.wire import HELLO_BYTES, MAGIC, Reply, Request, encode
from ramet.linux.unixsock import listen_in
from ramet.paths import AGENT_PORTS
from tests.unit.guests.fake_agent import FakeAgent

TAKE_ONE = """
import sys
from pathlib import Path
from ramet.guests.ports import take_port
port = take_port(Path(sys.argv[1]), deadline_s=10)
print("taken", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    """What a VMM would listen on."""
    with ExitStack() as stack:
        for number in range(AGENT_PORTS):
            stack.enter_context(closing(listen_in(tmp_path, f"agent{number}.sock")))
        yield tmp_path


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_every_client_has_a_port_of_its_own(run_dir: Path) -> None:
    with ExitStack() as stack:
        taken = [stack.enter_context(closing(take_port(run_dir, deadline_s=1))) for _ in range(AGENT_PORTS)]
        assert len({port.sock.getpeername() for port in taken}) == AGENT_PORTS


def test_all_busy_is_an_error_at_the_deadline(run_dir: Path) -> None:
    with ExitStack() as stack:
        for _ in range(AGENT_PORTS):
            stack.enter_context(closing(take_port(run_dir, deadline_s=1)))
        begin, before = time.monotonic(), open_descriptors()
        with pytest.raises(GuestTimeoutError, match="stayed busy"):
            take_port(run_dir, deadline_s=0.1)
        assert 0.1 <= time.monotonic() - begin < 30
        with pytest.raises(
            GuestTimeoutError, match=r"opened no session within 0\.1 s\. All 8 of its ports stayed busy\."
        ):
            AgentClient.open(run_dir, deadline_s=0.1)
        assert open_descriptors() == before


def test_port_that_becomes_free_is_taken(run_dir: Path) -> None:
    with ExitStack() as stack:
        taken = [stack.enter_context(closing(take_port(run_dir, deadline_s=1))) for _ in range(AGENT_PORTS)]
        peer = taken[3].sock.getpeername()
        threading.Timer(0.05, taken[3].close).start()
        with closing(take_port(run_dir, deadline_s=10)) as port:
            assert port.sock.getpeername() != b""
            assert Path(str(peer)).name == Path(str(port.sock.getpeername())).name


def test_closing_twice_is_fine_and_frees_the_port(run_dir: Path) -> None:
    before = open_descriptors()
    port = take_port(run_dir, deadline_s=1)
    port.close()
    port.close()
    assert open_descriptors() == before


def test_lock_goes_with_a_killed_process(run_dir: Path) -> None:
    with ExitStack() as stack:
        for _ in range(AGENT_PORTS - 1):
            stack.enter_context(closing(take_port(run_dir, deadline_s=1)))
        argv = [sys.executable, "-c", TAKE_ONE, str(run_dir)]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"taken\n"
            with pytest.raises(GuestTimeoutError):
                take_port(run_dir, deadline_s=0.05)
            child.kill()
        take_port(run_dir, deadline_s=1).close()


def test_helper_processes_do_not_inherit_the_lock(run_dir: Path) -> None:
    with ExitStack() as stack:
        taken = [stack.enter_context(closing(take_port(run_dir, deadline_s=1))) for _ in range(AGENT_PORTS)]
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE):
            taken[0].close()
            take_port(run_dir, deadline_s=1).close()


def test_nobody_listens(run_dir: Path) -> None:
    for number in range(AGENT_PORTS):
        (run_dir / f"agent{number}.sock").unlink()
    before = open_descriptors()
    with pytest.raises(VmmDiedError, match="does not answer"):
        take_port(run_dir, deadline_s=1)
    assert open_descriptors() == before


def test_socket_that_nobody_holds(tmp_path: Path) -> None:
    for number in range(AGENT_PORTS):
        listen_in(tmp_path, f"agent{number}.sock").close()
    with pytest.raises(VmmDiedError, match="refused"):
        take_port(tmp_path, deadline_s=1)


def test_vmm_that_hangs_does_not_keep_its_clients_for_ever(run_dir: Path) -> None:
    """Connections that nobody accepts fill the backlogs; a blocking connect(2) would then never return."""

    def use_ports() -> None:
        for _ in range(3 * AGENT_PORTS):
            take_port(run_dir, deadline_s=0.05).close()

    with pytest.raises(GuestTimeoutError, match="The VMM hangs"):
        use_ports()


def test_directory_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(VmmDiedError, match="is gone"):
        take_port(tmp_path / "nowhere", deadline_s=1)


def test_lock_that_cannot_be_made(run_dir: Path) -> None:
    for number in range(AGENT_PORTS):
        (run_dir / f"agent{number}.lock").mkdir()
    with pytest.raises(HostError, match="lock a port"):
        take_port(run_dir, deadline_s=1)


def test_clients_spread_over_the_ports(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that was just left needs a moment until its VMM has noticed: the next client should not wait for that."""
    seen = set()
    for start in range(AGENT_PORTS):
        monkeypatch.setattr("ramet.guests.ports.time.monotonic_ns", lambda start=start: start)
        with closing(take_port(run_dir, deadline_s=1)) as port:
            assert isinstance(port.sock, socket.socket)
            seen.add(port.sock.getpeername())
    assert len(seen) == AGENT_PORTS


# -- sessions over ports ------------------------------------------------------------------------------------------


class Played:
    """Ports behind which one agent answers from its ``deaf``-th connection on; what it was sent on each is kept."""

    def __init__(self, listeners: list[socket.socket], deaf: int) -> None:
        self._listeners = listeners
        self._deaf = deaf
        self.unanswered: list[bytes] = []
        self.requests: list[int] = []

    def serve(self) -> None:
        with ExitStack() as stack:
            deaf = [stack.enter_context(closing(self._accept())) for _ in range(self._deaf)]
            while not self.requests:  # if it is late, the client has given that connection up, and made another one
                with closing(self._accept()) as sock, suppress(BrokenPipeError, ConnectionResetError):
                    agent = FakeAgent(sock)
                    agent.greet()
                    self.requests.append(agent.request()[0])
                    agent.send(encode(Reply.STARTED, (77).to_bytes(4, "little")))
                    agent.wait_for_hangup()
            self.unanswered = [everything(sock) for sock in deaf]

    def _accept(self) -> socket.socket:
        (listener, *_), _, _ = select.select(self._listeners, [], [], 60)
        sock: socket.socket = listener.accept()[0]
        sock.settimeout(60)
        return sock


def everything(sock: socket.socket) -> bytes:
    """What was sent, up to the end."""
    found = b""
    while more := sock.recv(65536):
        found += more
    return found


@pytest.mark.parametrize("deaf", [0, 1, 2, 4])
def test_a_hello_that_is_lost_is_said_again_and_a_command_is_sent_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaf: int
) -> None:
    monkeypatch.setattr(sessions, "FIRST_TRY_S", 0.05)
    with ExitStack() as stack:
        names = [f"agent{number}.sock" for number in range(AGENT_PORTS)]
        played = Played([stack.enter_context(closing(listen_in(tmp_path, name))) for name in names], deaf)
        thread = threading.Thread(target=played.serve)
        thread.start()
        with AgentClient.open(tmp_path, deadline_s=60) as agent:
            assert agent.exec(["true"], detach=True).pid == 77
        thread.join(60)
    assert played.requests == [Request.EXEC]
    assert [(len(sent), sent[: len(MAGIC)]) for sent in played.unanswered] == [(HELLO_BYTES, MAGIC)] * deaf


def test_a_guest_that_never_answers_is_given_up_in_time(run_dir: Path) -> None:
    begin, before = time.monotonic(), open_descriptors()
    with pytest.raises(GuestTimeoutError, match=r"opened no session within 0\.3 s"):
        AgentClient.open(run_dir, deadline_s=0.3)
    assert time.monotonic() - begin < 30
    assert open_descriptors() == before


def test_an_agent_that_is_slow_to_answer_the_first_hello_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though there are more connections by then, on which nothing will come."""
    monkeypatch.setattr(sessions, "FIRST_TRY_S", 0.2)
    with ExitStack() as stack:
        names = [f"agent{number}.sock" for number in range(AGENT_PORTS)]
        listeners = [stack.enter_context(closing(listen_in(tmp_path, name))) for name in names]

        def answer_late() -> None:
            (listener, *_), _, _ = select.select(listeners, [], [], 60)
            with closing(listener.accept()[0]) as sock:
                sock.settimeout(60)
                time.sleep(1)
                agent = FakeAgent(sock)
                agent.greet()
                agent.wait_for_hangup()

        thread = threading.Thread(target=answer_late)
        thread.start()
        AgentClient.open(tmp_path, deadline_s=60).close()
        thread.join(60)
    assert not thread.is_alive()
