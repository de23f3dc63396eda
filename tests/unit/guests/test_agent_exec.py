"""Commands under the agent, run natively: streams, limits, terminals, ends."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from ramet.errors import ConfigError
from ramet.guests import wire
from ramet.guests.client import ExecControl, GuestRefusedError
from ramet.guests.wire import Reply, Request
from ramet.process import wait_until
from tests.capabilities import requires
from tests.unit.children import LIBC_SIGNALS
from tests.unit.guests.native_agent import DEADLINE_S, LINGER_MS, NativeAgent
from tests.unit.guests.raw_client import EPOCH, Raw, exec_message, refusal

pytestmark = requires("gcc")
MIB = 1 << 20
OWN_WRITES = 13
"""Bytes that a child writes before it becomes its program: its report, and itself into the cgroup."""
TRIES = 5
"""Where a child has to be quicker than the agent is patient, which a busy host may not let it be."""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(pid: int) -> Callable[[], bool]:
    return lambda: not is_alive(pid)


def test_stdout_and_stderr_are_apart(agent: NativeAgent) -> None:
    with agent.client() as client:
        result = client.exec(["sh", "-c", "echo to-out; echo to-err >&2; exit 7"])
    assert (result.stdout, result.stderr) == (b"to-out\n", b"to-err\n")
    assert (result.status, result.signal, result.timed_out, result.exit_status) == (7, None, False, 7)
    assert result.pid


def test_output_comes_as_it_is_written(agent: NativeAgent) -> None:
    """The second half is written only after the first has been seen here."""
    read_fd, write_fd = os.pipe()
    heard: list[bytes] = []

    def hear(data: bytes) -> None:
        heard.append(data)
        if len(heard) == 1:
            os.write(write_fd, b"go on\n")
            os.close(write_fd)

    with agent.client() as client:
        result = client.exec(["sh", "-c", "echo first; read line; echo $line"], stdin=read_fd, stdout=hear)
    os.close(read_fd)
    assert result.status == 0
    assert b"".join(heard) == b"first\ngo on\n"


def test_megabytes_of_stdin_go_through_the_window(agent: NativeAgent) -> None:
    data = os.urandom(64 * 1024) * 80  # twenty windows
    with agent.client() as client:
        result = client.exec(["cat"], stdin=data)
    assert result.stdout == data


def test_stdin_may_be_left_unread(agent: NativeAgent) -> None:
    with agent.client() as client:
        assert client.exec(["true"], stdin=bytes(4 * MIB)).status == 0
        assert client.exec(["sh", "-c", "exec <&-; echo closed"], stdin=bytes(4 * MIB)).stdout == b"closed\n"
        client.ping()


def test_stdin_ends_at_once_without_one(agent: NativeAgent) -> None:
    with agent.client() as client:
        assert client.exec(["cat"]).stdout == b""


def test_more_stdin_than_the_window_ends_the_command(agent: NativeAgent) -> None:
    with closing(agent.connect()) as sock:
        raw = Raw(sock)
        raw.send(wire.hello(EPOCH), exec_message("sleep", "1000"))
        assert raw.receive()[0] == Reply.STARTED
        raw.send(wire.encode(Request.STDIN, bytes(60_000)) * 8)
        while (answer := raw.receive())[0] == Reply.WINDOW:
            pass
        assert answer[0] == Reply.ERROR
        assert refusal(answer[1]).errno == errno.EOVERFLOW
        raw.send(wire.encode(Request.PING))
        assert raw.receive()[0] == Reply.OK


def test_environment_and_directory(agent: NativeAgent) -> None:
    with agent.client() as client:
        shown = client.exec(
            ["sh", "-c", "pwd; echo $A; echo $HOME; echo $PATH"], env={"A": "x y", "HOME": "/h"}, cwd="/usr"
        )
        assert shown.stdout.decode().splitlines()[:3] == ["/usr", "x y", "/h"]
        assert "/usr/bin" in shown.stdout.decode().splitlines()[3]
        assert client.exec(["env", "-i", "/bin/sh", "-c", "echo in $PWD"], cwd="/").stdout == b"in /\n"
        assert client.exec(["printf", "%s.", "a b", "", "c\n*"]).stdout == b"a b..c\n*."


def test_thousands_of_arguments(agent: NativeAgent) -> None:
    with agent.client() as client:
        assert client.exec(["sh", "-c", "echo $#", *["x"] * 20_000]).stdout == b"19999\n"


@pytest.mark.parametrize(
    ("argv", "cwd", "number", "named"),
    [
        (["no-such-program"], None, errno.ENOENT, "no-such-program"),
        (["/no/such/program"], None, errno.ENOENT, "/no/such/program"),
        (["/etc/passwd"], None, errno.EACCES, "/etc/passwd"),
        (["/"], None, errno.EACCES, "/"),
        (["true"], "/no/such/directory", errno.ENOENT, "/no/such/directory"),
        (["true"], "/etc/passwd", errno.ENOTDIR, "/etc/passwd"),
        (["true", "x" * 65_000, *["y" * 60_000] * 14], None, None, ""),
    ],
)
@pytest.mark.parametrize("detach", [False, True])
def test_what_cannot_be_started_says_why(
    agent: NativeAgent, argv: list[str], cwd: str | None, number: int | None, named: str, detach: bool
) -> None:
    with agent.client() as client:
        if number is None:
            assert client.exec(argv, cwd=cwd, detach=detach).pid
            return
        with pytest.raises(GuestRefusedError, match=named) as caught:
            client.exec(argv, cwd=cwd, detach=detach)
        assert caught.value.errno == number
        client.ping()


def test_search_path_is_the_commands_own(agent: NativeAgent, tmp_path: Path) -> None:
    (tmp_path / "tool").write_text("#!/bin/sh\necho mine\n")
    (tmp_path / "tool").chmod(0o755)
    (tmp_path / "no").write_text("")
    with agent.client() as client:
        assert client.exec(["tool"], env={"PATH": f"/nowhere::{tmp_path}"}).stdout == b"mine\n"
        assert client.exec(["./tool"], cwd=str(tmp_path)).stdout == b"mine\n"
        with pytest.raises(GuestRefusedError) as caught:
            client.exec(["no"], env={"PATH": str(tmp_path)})
        assert caught.value.errno == errno.EACCES


def test_time_limit_is_124(agent: NativeAgent) -> None:
    begin = time.monotonic()
    with agent.client() as client:
        result = client.exec(["sleep", "1000"], timeout_s=0.05)
    assert (result.timed_out, result.exit_status, result.signal) == (True, 124, signal.SIGTERM)
    assert time.monotonic() - begin < 60


def test_time_limit_ends_what_ignores_sigterm(agent: NativeAgent) -> None:
    """A shell that ignores it, with a child in its group that does too and holds the output."""
    script = "trap '' TERM; sleep 1000 & echo $!; wait"
    with agent.client() as client:
        result = client.exec(["sh", "-c", script], timeout_s=1.0)
    assert (result.timed_out, result.signal) == (True, signal.SIGKILL)
    wait_until(gone(int(result.stdout)), DEADLINE_S, what="the end of the child")


def test_time_limit_leaves_its_group_a_moment(agent: NativeAgent, tmp_path: Path) -> None:
    """The command is ended by SIGTERM at once; a child that needs longer to clean up has until SIGKILL."""
    cleaned = tmp_path / "cleaned"
    assert any(is_cleaned_up(agent, cleaned) for _ in range(TRIES))


def is_cleaned_up(agent: NativeAgent, cleaned: Path) -> bool:
    child = f"trap 'sleep 0.4; touch {cleaned}; exit' TERM; echo ready; while :; do sleep 0.01; done"
    with agent.client() as client:
        result = client.exec(["sh", "-c", 'sh -c "$1" & exec sleep 1000', "sh", child], timeout_s=1.0)
    assert (result.timed_out, result.signal) == (True, signal.SIGTERM)
    return result.stdout == b"ready\n" and cleaned.exists()


def test_time_limit_ends_also_what_holds_no_pipe(agent: NativeAgent) -> None:
    script = "(trap '' TERM; exec >/dev/null 2>&1; sleep 1000) & echo $!; exec sleep 1000"
    with agent.client() as client:
        result = client.exec(["sh", "-c", script], timeout_s=1.0)
    wait_until(gone(int(result.stdout)), DEADLINE_S, what="the end of the child")


def test_time_limit_that_is_not_reached(agent: NativeAgent) -> None:
    with agent.client() as client:
        assert client.exec(["true"], timeout_s=60).timed_out is False


@pytest.mark.parametrize("limit", [0, -1, float("nan"), 1e9])
def test_no_time_limit_at_all_is_refused(agent: NativeAgent, limit: float) -> None:
    with agent.client() as client, pytest.raises(ConfigError):
        client.exec(["true"], timeout_s=limit)


def test_end_by_signal(agent: NativeAgent) -> None:
    with agent.client() as client:
        result = client.exec(["sh", "-c", "kill -SEGV $$"])
    assert (result.status, result.signal, result.exit_status) == (None, signal.SIGSEGV, 128 + signal.SIGSEGV)


@pytest.mark.parametrize("pty", [None, (24, 80)])
def test_signals_reach_the_group(agent: NativeAgent, pty: tuple[int, int] | None) -> None:
    """A child in the background of the same group gets it, too."""
    script = "trap 'echo got; exit 3' USR1; sh -c 'echo ready; while :; do sleep 0.01; done' & wait"
    with agent.client() as client, closing(ExecControl()) as control:

        def hear(data: bytes) -> None:
            heard.append(data)
            if b"ready" in data:
                control.send_signal(signal.SIGUSR1)

        heard: list[bytes] = []
        result = client.exec(["sh", "-c", script], stdout=hear, control=control, pty=pty)
    assert result.status == 3
    assert b"got" in b"".join(heard)


def test_child_has_a_clean_process(agent: NativeAgent) -> None:
    """No descriptor of another session, no signal blocked or ignored, its own session, nothing of the agent's."""
    with agent.client() as other, closing(agent.connect()):
        other.ping()
        with agent.client() as client:
            listing = client.exec(["ls", "/proc/self/fd"]).stdout.split()
            shown = client.exec(["cat", "/proc/self/stat", "/proc/self/status"]).stdout.decode()
    stat, status = shown.split("\n", 1)
    assert listing == [b"0", b"1", b"2", b"3"]  # 3 is the directory that ls reads
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert int(fields["SigBlk"], 16) == 0
    assert int(fields["SigIgn"], 16) & ~LIBC_SIGNALS == 0
    assert stat.rsplit(")", 1)[1].split()[2:4] == [fields["Pid"]] * 2, "it leads its group and its session"


def test_huge_output_to_a_slow_reader_is_held_back(own_agent: NativeAgent) -> None:
    """The guest's memory does not take what the client does not: the writer waits, and loses nothing."""
    size = 32 * MIB
    with closing(own_agent.connect()) as sock:
        raw = Raw(sock)
        raw.send(wire.hello(EPOCH), exec_message("head", "-c", str(size), "/dev/zero"))
        raw.receive()
        [pid] = own_agent.children()
        wait_until(stands_still(pid), DEADLINE_S, what="the writer to be held back")
        assert written(pid) < 4 * MIB
        total = 0
        while (message := raw.receive())[0] == Reply.STDOUT:
            total += len(message[1])
    assert total == size
    assert message == (Reply.EXIT, bytes(6))


def written(pid: int) -> int:
    return int(Path(f"/proc/{pid}/io").read_text().split("wchar: ")[1].split()[0])


def stands_still(pid: int) -> Callable[[], bool]:
    """Ten looks in a row see the same."""
    seen: list[int] = []

    def look() -> bool:
        seen.append(written(pid))
        return seen[-1] > MIB // 8 and len(seen) > 10 and len(set(seen[-10:])) == 1

    return look


def test_detached_command_outlives_its_session(own_agent: NativeAgent, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with own_agent.client() as client:
        result = client.exec(["sh", "-c", f"cat {fifo} >{tmp_path}/out"], detach=True)
    assert result.status is None
    assert result.pid
    own_agent.settle()
    assert is_alive(result.pid)
    assert result.pid not in own_agent.children()
    fifo.write_text("still here")
    wait_until(gone(result.pid), DEADLINE_S, what="its end")
    assert (tmp_path / "out").read_text() == "still here"


def test_background_grandchild_that_holds_the_pipe(agent: NativeAgent) -> None:
    """The command is over when it exits; what it left runs on, and what it had written has come."""
    begin = time.monotonic()
    with agent.client() as client:
        result = client.exec(["sh", "-c", "sleep 1000 & echo $!"])
    assert time.monotonic() - begin < 60
    pid = int(result.stdout)
    assert is_alive(pid)
    os.kill(pid, signal.SIGKILL)


def test_last_words_of_a_pipeline_come(agent: NativeAgent) -> None:
    """What ends a moment after the command itself is still listened to."""
    with agent.client() as client:
        heard = (client.exec(["sh", "-c", "(sleep 0.05; echo late) & echo early"]).stdout for _ in range(TRIES))
        assert any(words == b"early\nlate\n" for words in heard)


def test_grandchild_that_never_stops_writing(agent: NativeAgent) -> None:
    """It is listened to, as long as it is never silent, until ``LINGER_MS``; and no longer, or this would not end."""
    assert any(listened_to_s(agent) > LINGER_MS / 1000 for _ in range(TRIES))


def listened_to_s(agent: NativeAgent) -> float:
    begin = time.monotonic()
    seen = [0]

    def count(data: bytes) -> None:
        seen[0] += len(data)

    with agent.client() as client:
        result = client.exec(["sh", "-c", "(while echo on; do sleep 0.01; done) & exec true"], stdout=count)
        took_s = time.monotonic() - begin
        client.ping()
    assert result.status == 0
    assert seen[0] > 0
    assert took_s < 60
    return took_s


def test_nothing_of_a_command_is_lost_to_a_client_that_sleeps(own_agent: NativeAgent) -> None:
    """It ends while its client does not read, something holds the pipe, and all deadlines pass: what it wrote still comes."""
    with closing(own_agent.connect()) as sock:
        raw = Raw(sock)
        raw.send(wire.hello(EPOCH), exec_message("sh", "-c", "sleep 1000 & echo $!; exec dd if=/dev/zero bs=4096"))
        raw.receive()
        [pid] = own_agent.children()
        wait_until(stands_still(pid), DEADLINE_S, what="the writer to be held back")
        wrote = written(pid) - OWN_WRITES
        os.kill(pid, signal.SIGKILL)
        ended_s = time.monotonic()
        wait_until(lambda: time.monotonic() > ended_s + 2 * LINGER_MS / 1000, DEADLINE_S, what="the deadlines")
        output = b""
        while (message := raw.receive())[0] == Reply.STDOUT:
            output += message[1]
    os.kill(int(output.split(b"\n")[0]), signal.SIGKILL)
    assert len(output) == wrote


@pytest.mark.parametrize("pty", [None, (24, 80)])
def test_all_of_a_large_output_comes_before_the_exit(agent: NativeAgent, pty: tuple[int, int] | None) -> None:
    with agent.client() as client:
        for _ in range(2):
            result = client.exec(
                ["sh", "-c", "sleep 1000 & head -c 60000 /dev/zero | tr '\\0' x; echo; echo $!"], pty=pty
            )
            last = result.stdout.split()[-1]
            os.kill(int(last), signal.SIGKILL)
            assert len(result.stdout.split()[0]) == 60000


# -- terminals ------------------------------------------------------------------------------------------------------


def test_terminal_has_its_size_and_controls(agent: NativeAgent) -> None:
    with agent.client() as client:
        result = client.exec(
            ["sh", "-c", "stty size; tty; echo err >&2; test -t 0 && test -t 1 && test -t 2"], pty=(33, 77)
        )
    assert result.status == 0
    lines = result.stdout.decode().split("\r\n")
    assert lines[0] == "33 77"
    assert lines[1].startswith("/dev/pts/")
    assert lines[2] == "err", "a terminal has one output"
    assert result.stderr == b""


def test_terminal_is_resized(agent: NativeAgent) -> None:
    script = "trap 'stty size; exit 5' WINCH; echo ready; while :; do sleep 0.01; done"
    heard: list[bytes] = []
    with agent.client() as client, closing(ExecControl()) as control:

        def hear(data: bytes) -> None:
            heard.append(data)
            if b"ready" in data:
                control.resize(50, 132)

        result = client.exec(["sh", "-c", script], stdout=hear, control=control, pty=(24, 80))
    assert result.status == 5
    assert b"50 132\r\n" in b"".join(heard)


@pytest.mark.parametrize(("typed", "seen"), [(b"", b""), (b"line\n", b"line\n"), (b"half a line", b"half a line")])
def test_end_of_terminal_input(agent: NativeAgent, tmp_path: Path, typed: bytes, seen: bytes) -> None:
    """Ctrl-D: once, or twice where a line was begun, so that the reader sees the end either way."""
    with agent.client() as client:
        assert client.exec(["sh", "-c", f"cat >{tmp_path}/seen"], stdin=typed, pty=(24, 80), timeout_s=60).status == 0
    assert (tmp_path / "seen").read_bytes() == seen


# -- the workload ---------------------------------------------------------------------------------------------------


def test_commands_join_the_workload(own_agent: NativeAgent) -> None:
    with own_agent.client() as client:
        client.exec(["true"])
    assert (own_agent.root / "sys/fs/cgroup/workload/cgroup.procs").read_text() == "0"


def test_a_command_outside_the_workload_runs_while_that_is_frozen(own_agent: NativeAgent) -> None:
    with own_agent.frozen_workload(), own_agent.client() as client:
        assert client.exec(["echo", "outside"], outside_workload=True, timeout_s=DEADLINE_S).stdout == b"outside\n"


def test_command_that_cannot_join_the_workload_does_not_run(own_agent: NativeAgent) -> None:
    """It could not be frozen."""
    procs = own_agent.root / "sys/fs/cgroup/workload/cgroup.procs"
    procs.unlink()
    procs.mkdir()
    with own_agent.client() as client, pytest.raises(GuestRefusedError) as caught:
        client.exec(["true"])
    assert caught.value.errno == errno.EISDIR


def test_command_started_while_frozen_runs_after_the_thaw(own_agent: NativeAgent) -> None:
    results: list[bytes] = []

    def work() -> None:
        with own_agent.client() as client:
            results.append(client.exec(["echo", "thawed"]).stdout)
            results.append(b"%d" % (client.exec(["true"], detach=True).pid or 0))

    thread = threading.Thread(target=work)
    with own_agent.frozen_workload():
        thread.start()
        wait_until(lambda: own_agent.children() or None, DEADLINE_S, what="the child")
        with own_agent.client() as client:
            client.ping()
            client.thaw()
        assert results == []
    thread.join(DEADLINE_S)
    assert results[0] == b"thawed\n"
    assert len(results) == 2


@pytest.mark.parametrize("detach", [False, True])
def test_command_cancelled_while_frozen_never_runs(own_agent: NativeAgent, tmp_path: Path, detach: bool) -> None:
    marker = tmp_path / "ran"
    with own_agent.frozen_workload():
        with closing(own_agent.connect()) as sock:
            Raw(sock).send(wire.hello(EPOCH), exec_message("touch", str(marker), flags=2 if detach else 0))
            wait_until(lambda: own_agent.relatives() or None, DEADLINE_S, what="the child")
        own_agent.settle()
    with own_agent.client() as client:
        client.exec(["true"])
    assert not marker.exists()
