"""exec and cp through the command line: streams, statuses, signals, terminals and files, with a real guest at the other end."""

from __future__ import annotations

import base64
import os
import signal
import stat
import time
from pathlib import Path

import pytest

from ramet import Host
from ramet.model import MIB, InstanceInfo
from ramet.process import wait_until
from tests.file_systems import WHOLE
from tests.vm.command_line import CommandLine
from tests.vm.guests import sh
from tests.vm.pseudo_terminal import PseudoTerminal

pytestmark = pytest.mark.parametrize("file_system", ["ext4"], indirect=True)
COPIED_BYTES = (40 if WHOLE else 24) * MIB
STUBBORN = 'trap "" INT TERM HUP; echo up; while :; do sleep 0.05; done'


@pytest.fixture
def ramet(host: Host) -> CommandLine:
    return CommandLine(host.home)


def test_exec_is_a_pipe_with_a_status(host: Host, ramet: CommandLine, running: InstanceInfo) -> None:
    for script, status in (("exit 7", 7), ("kill -9 $$", 137), ("kill -HUP $$", 129), ("exit 255", 255)):
        assert ramet.run("exec", "web", "--", "sh", "-c", script).status == status, script
    began = time.monotonic()
    late = ramet.run("exec", "web", "--timeout", "0.5", "--", "sleep", "60")
    assert (late.status, late.err) == (124, "ramet: web: the command ran longer than 0.5 s and was ended\n")
    assert time.monotonic() - began < 50

    for argv, status in (("nosuch",), 127), (("/etc/passwd",), 126), (("-w", "/nowhere", "true"), 127):
        assert "In the guest: " in ramet.run("exec", "web", *argv).refused(status)
    assert ramet.error("exec", "web", "nosuch", status=127)["code"] == "guest-refused"

    data = os.urandom(MIB)
    done = ramet.run("exec", "web", "--", "sh", "-c", "cat; echo said >&2", stdin=data)
    assert (done.status, done.out == data, done.err) == (0, True, "said\n")
    assert ramet.text("exec", "web", "-e", "A=b c", "-w", "/data", "--", "sh", "-c", 'echo "$A" $PWD') == "b c /data\n"

    found = ramet.json("exec", "web", "--", "sh", "-c", "printf '\\377'; echo no >&2")
    assert (found["exit_status"], found["encoding"]) == (0, "base64")
    assert [base64.b64decode(found[stream]) for stream in ("stdout", "stderr")] == [b"\xff", b"no\n"]

    pid = ramet.json("exec", "-d", "web", "--", "sleep", "1000")["pid"]
    assert sh(host, "web", f"cat /proc/{pid}/comm") == "sleep"


def test_a_reader_that_has_enough_ends_the_command(host: Host, ramet: CommandLine, running: InstanceInfo) -> None:
    with ramet.start("exec", "web", "--", "yes") as process:
        assert process.stdout
        assert process.stdout.read(4) == b"y\ny\n"
        process.stdout.close()
        assert process.wait(timeout=60) == 141
        assert process.stderr
        assert process.stderr.read() == b""
    wait_until(lambda: sh(host, "web", "pidof yes || echo none") == "none", 60, what="the command in the guest to end")


def test_signals_reach_the_command(host: Host, ramet: CommandLine, running: InstanceInfo) -> None:
    script = 'trap "echo got; exit 5" TERM; echo up; while :; do sleep 0.05; done'
    with ramet.start("exec", "web", "--", "sh", "-c", script) as process:
        assert process.stdout
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (5, b"got\n")

    with ramet.start("exec", "web", "--", "sh", "-c", STUBBORN) as process:
        assert process.stdout
        assert process.stdout.readline() == b"up\n"
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            assert process.poll() is None
            process.send_signal(number)
            wait_until(lambda: not has_pending(process.pid, number), 60, what="the signal to be taken")  # noqa: B023
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Gave up waiting" in err
    wait_until(lambda: sh(host, "web", "pgrep -f [u]p.*while || echo none") == "none", 60, what="it to be killed")


def has_pending(pid: int, number: int) -> bool:
    """Whether a process has yet to see a signal (proc(5), ShdPnd); signals of one kind are not counted."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(("ShdPnd:", "SigPnd:")) and int(line.split()[1], 16) & 1 << (number - 1):
            return True
    return False


def test_a_terminal_in_the_guest(host: Host, ramet: CommandLine, running: InstanceInfo) -> None:
    """Keys go to the guest's terminal, Ctrl-C among them; its size follows ours; and ours gets its modes back."""
    with PseudoTerminal(ramet, "exec", "-t", "web", "sh", rows=30, columns=100) as terminal:
        modes = terminal.modes()
        terminal.type(b"tty; stty size\n")
        terminal.expect(b"/dev/pts/")
        terminal.expect(b"30 100")
        assert terminal.modes() != modes, "our terminal is raw meanwhile"
        terminal.resize(40, 120)
        terminal.type(b"until stty size | grep 120; do sleep 0.1; done\n")
        terminal.expect(b"40 120")
        terminal.type(b"sleep 1000\n")
        wait_until(lambda: sh(host, "web", "pidof sleep || echo none") != "none", 60, what="sleep to run")
        terminal.type(b"\x03")
        wait_until(lambda: sh(host, "web", "pidof sleep || echo none") == "none", 60, what="sleep to end")
        terminal.type(b"echo status-$?\n")
        terminal.expect(b"status-130")
        terminal.type(b"exit 4\n")
        assert terminal.finish() == 4
        assert terminal.modes() == modes


def test_a_terminal_that_stays_ours(host: Host, ramet: CommandLine, running: InstanceInfo) -> None:
    """Without -t, Ctrl-C is a signal to us, and we hand it on."""
    with PseudoTerminal(ramet, "exec", "web", "--", "sh", "-c", "echo up; exec sleep 1000") as terminal:
        terminal.expect(b"up")
        terminal.type(b"\x03")
        assert terminal.finish() == 130
    assert sh(host, "web", "pidof sleep || echo none") == "none"


def test_files_in_and_out(ramet: CommandLine, running: InstanceInfo, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(COPIED_BYTES))
    source.chmod(0o751)
    sent = ramet.json("cp", str(source), "web:/data/")
    assert (sent["destination"], sent["size_bytes"]) == ("web:/data/source", COPIED_BYTES)
    ramet.text("cp", "web:/data/source", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    assert stat.S_IMODE((tmp_path / "back").stat().st_mode) == 0o751
    ramet.text("cp", "-", "web:/data/piped", stdin=b"piped\n")
    assert ramet.run("cp", "web:/data/piped", "-").ok().out == b"piped\n"
    assert ramet.text("exec", "web", "--", "stat", "-c", "%a", "/data/piped") in ("644\n", "640\n", "600\n")

    for argv, status in (
        (("nofile", "web:/data/x"), 3),
        ((str(source), "web:/nowhere/x"), 3),
        ((str(tmp_path), "web:/data/x"), 2),
        (("web:/data", str(tmp_path)), 2),
        (("web:/gone", str(tmp_path)), 3),
        (("web:/data/piped", f"{tmp_path}/nodir/x"), 3),
        ((str(source), "web:/proc/x"), 3),
        (("web:/dev/zero", "-"), 15),
        ((str(source), "nosuch:/data/x"), 3),
    ):
        before = sorted(tmp_path.iterdir())
        ramet.run("cp", *argv).refused(status)
        assert sorted(tmp_path.iterdir()) == before
    assert ramet.text("exec", "web", "--", "ls", "-A", "/data") == "lost+found\nmark\npiped\nsource\n"


def test_a_copy_into_the_guests_memory_that_has_no_room(
    ramet: CommandLine, running: InstanceInfo, tmp_path: Path
) -> None:
    """It ends where the file system does, and not where the kernel kills what runs."""
    too_much = tmp_path / "too-much"
    with too_much.open("wb") as stream:
        stream.truncate(256 * MIB)
    for directory in ("/ram", "/tmp", "/dev/shm"):
        assert "No space left" in ramet.run("cp", str(too_much), f"web:{directory}/").refused(15)
        assert ramet.text("exec", "web", "--", "ls", "-A", directory) == ("mark\n" if directory == "/ram" else "")
    filled = ramet.run("exec", "web", "--", "dd", "if=/dev/zero", "of=/ram/all", "bs=1M")
    assert (filled.status, "No space left" in filled.err) == (1, True)
    assert int(ramet.text("exec", "web", "--", "stat", "-c", "%s", "/ram/all")) > 96 * MIB
    assert b"Out of memory" not in ramet.run("logs", "web").ok().out
