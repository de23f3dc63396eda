"""`ramet guard`: the command runs as if it ran bare, the report is on stderr, and the status tells."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

RAMET = [sys.executable, "-m", "ramet.cli"]
TIMEOUT_S = 30.0
STAYS = "echo ready; i=0; while [ $i -lt 300 ]; do i=$((i+1)); sleep 0.05; done"
"""A command that a signal can end, and that ends by itself where none comes."""


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    path = tmp_path / "memory"
    path.write_bytes(b"m" * 8192)
    return path


def guard(*words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*RAMET, "guard", *words], input=stdin, capture_output=True, timeout=TIMEOUT_S, check=False)


def test_nothing_changed(memory: Path) -> None:
    done = guard(str(memory), "--", "sh", "-c", "cat; exit 0", stdin=b"through")
    assert (done.returncode, done.stdout) == (0, b"through")
    assert done.stderr.startswith(b"PASS  1 file (8 KiB) is as it was: sh -c")


def test_something_changed(memory: Path) -> None:
    done = guard(
        str(memory),
        "--",
        "sh",
        "-c",
        'printf x | dd of="$1" bs=1 seek=5000 conv=notrunc status=none',
        "sh",
        str(memory),
    )
    assert done.returncode == 1
    first, *more = done.stderr.decode().splitlines()
    assert first.startswith("FAIL  1 of 1 file (8 KiB) changed: ")
    assert str(memory) in more
    assert "    page 1" in more


def test_a_command_that_fails_is_no_pass(memory: Path) -> None:
    assert guard(str(memory), "--", "sh", "-c", "exit 3").returncode == 2
    killed = guard(str(memory), "--", "sh", "-c", "kill -9 $$")
    assert killed.returncode == 2
    assert b"ended by signal 9" in killed.stderr


def test_json_on_stdout_and_in_a_file(memory: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = guard(
        str(memory), "--json", "--output", str(report), "--", "sh", "-c", 'echo out; echo >>"$1"', "sh", str(memory)
    )
    assert done.returncode == 1
    assert done.stderr == b"out\n"
    assert done.stdout == report.read_bytes()
    value = json.loads(done.stdout)
    assert (value["verdict"], value["exit_status"], value["files"], value["bytes"]) == ("FAIL", 1, 1, 8192)
    assert value["command"]["status"] == 0
    (change,) = value["changes"]
    assert (change["path"], change["pages"], change["harmless"]) == (str(memory), [[2, 2]], False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{memory}"], "no command"),
        (["{memory}", "--"], "no command"),
        (["--", "true"], "PATH"),
        (["{memory}", "--", "no-such-program"], "no program 'no-such-program'"),
        (["{memory}", "--", "/etc/passwd"], "no program '/etc/passwd'"),
        (["{memory}-gone", "--", "true"], "No such file"),
        (["/dev/null", "--", "true"], "a character device"),
        (["{memory}", "--output", "{memory}/x/report", "--", "true"], "no directory"),
        (["{memory}", "--nonsense", "--", "true"], "--nonsense"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_run(memory: Path, tmp_path: Path, words: list[str], said: str) -> None:
    done = guard(*(word.format(memory=memory) for word in words))
    assert done.returncode == 2
    assert said in done.stderr.decode()
    assert done.stderr.startswith(b"ramet: error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["memory"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_the_command_and_the_report_still_comes(memory: Path, number: signal.Signals) -> None:
    script = f"trap 'echo told; exit 5' TERM HUP; {STAYS}"
    command = [*RAMET, "guard", str(memory), "--", "sh", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(number)
        out, err = child.communicate(timeout=TIMEOUT_S)
    assert (child.returncode, out) == (2, b"told\n")
    assert b"(status 5" in err


def test_ctrl_c_is_the_command_s_and_the_report_still_comes(memory: Path) -> None:
    """The terminal sends it to the whole process group."""
    script = f"trap 'echo told; exit 0' INT; {STAYS}"
    command = [*RAMET, "guard", str(memory), "--", "sh", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0) as child:
        assert child.stdout
        assert child.stdout.readline() == b"ready\n"
        os.killpg(child.pid, signal.SIGINT)
        out, err = child.communicate(timeout=TIMEOUT_S)
    assert (child.returncode, out) == (0, b"told\n")
    assert err.startswith(b"PASS")


def test_what_others_have_named_does_not_steer_the_terminal(tmp_path: Path) -> None:
    strange = tmp_path / "memory\nPASS  all is well\x1b[2J"
    strange.write_bytes(b"m")
    done = guard(str(tmp_path), "--", "sh", "-c", 'echo >>"$1"', "sh", str(strange))
    assert done.returncode == 1
    assert b"\x1b" not in done.stderr
    assert not any(line.startswith(b"PASS") for line in done.stderr.splitlines())


def test_a_report_that_cannot_be_written_was_said_before(memory: Path, tmp_path: Path) -> None:
    (tmp_path / "report.json").mkdir()
    done = guard(
        str(memory), "--output", str(tmp_path / "report.json"), "--", "sh", "-c", 'echo >>"$1"', "sh", str(memory)
    )
    assert done.stderr.startswith(b"FAIL")
    assert b"Could not write" in done.stderr
    assert done.returncode == 2


def test_without_a_terminal_ctrl_c_is_passed_on_too(memory: Path) -> None:
    """A CI system that cancels sends it to one process alone."""
    script = f"trap 'echo told; exit 0' INT; {STAYS}"
    command = ["setsid", "--wait", *RAMET, "guard", str(memory), "--", "sh", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout
        assert child.stdout.readline() == b"ready\n"
        ours = subprocess.run(["pgrep", "-f", f"ramet.cli guard {memory}"], capture_output=True, check=True, text=True)
        for pid in map(int, ours.stdout.split()):
            if b"setsid" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGINT)
        out, err = child.communicate(timeout=TIMEOUT_S)
    assert (child.returncode, out) == (0, b"told\n")
    assert err.startswith(b"PASS")


@pytest.mark.parametrize("output", ["memory", "link", "hard", "tree/new.json", "to-tree/new.json"])
def test_the_report_is_not_written_over_what_is_guarded(tmp_path: Path, output: str) -> None:
    (tmp_path / "tree").mkdir()
    memory = tmp_path / "memory"
    memory.write_bytes(b"golden")
    (tmp_path / "link").symlink_to("memory")
    (tmp_path / "hard").hardlink_to(memory)
    (tmp_path / "to-tree").symlink_to("tree")
    (tmp_path / "tree" / "file").write_bytes(b"x")
    done = guard(str(memory), str(tmp_path / "tree"), "--output", str(tmp_path / output), "--", "true")
    assert done.returncode == 2
    assert b"guarded" in done.stderr
    assert memory.read_bytes() == b"golden"
    assert [path.name for path in (tmp_path / "tree").iterdir()] == ["file"]
