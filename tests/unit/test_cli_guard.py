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
    for script, how in {"exit 3": "ended with status 3", "kill -9 $$": "was ended by signal 9"}.items():
        done = guard(str(memory), "--", "sh", "-c", script)
        assert done.returncode == 2
        assert done.stderr.startswith(
            f"INCONCLUSIVE  1 file (8 KiB) is as it was, but the command {how}: sh -c".encode()
        )
        value = json.loads(guard(str(memory), "--json", "--", "sh", "-c", script).stdout)
        assert (value["verdict"], value["exit_status"], value["reason"]) == ("INCONCLUSIVE", 2, f"the command {how}")
    changed = guard(str(memory), "--", "sh", "-c", 'echo >>"$1"; exit 3', "sh", str(memory))
    assert changed.returncode == 1
    assert changed.stderr.startswith(b"FAIL  1 of 1 file (8 KiB) changed: sh -c")
    assert b"(status 3, " in changed.stderr


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
    assert (change["path"], change["pages"], change["harmless"]) == (str(memory), [[2, 3]], False)


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
        (["{memory}", "--output", "{memory}.x/report", "--", "true"], "no directory"),
        (["{memory}", "--output", "/", "--", "true"], "is a directory"),
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
    assert err.startswith(b"INCONCLUSIVE  1 file (8 KiB) is as it was, but the command ended with status 5: sh -c")


def test_ctrl_c_is_the_command_s_and_the_report_still_comes(memory: Path) -> None:
    """The terminal sends it to the whole process group. Where there is none, as here, ours is passed on besides: the second
    counts for nothing.
    """
    script = f"""trap 'trap "" INT; echo told; exit 0' INT; {STAYS}"""
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


def test_a_report_that_cannot_be_written_was_said_before(memory: Path) -> None:
    done = guard(str(memory), "--output", "/dev/full", "--", "sh", "-c", 'echo >>"$1"', "sh", str(memory))
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


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Five files and a symlink."""
    root = tmp_path / "tree"
    root.mkdir()
    for number in range(5):
        (root / f"file{number}").write_bytes(b"x" * 1024)
    (root / "link").symlink_to("file0")
    return root


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ('rm -rf "$1"', "7 gone, of 5 files (5 KiB), 1 symlink and 1 directory: "),
        ('rm "$1"/link', "1 gone, of 5 files (5 KiB), 1 symlink and 1 directory: "),
        ('touch "$1"/new', "1 new, of 5 files (5 KiB), 1 symlink and 1 directory: "),
        (
            'chmod 700 "$1"; rm "$1"/file*; : >"$1"/new',
            "1 changed, 1 new, 5 gone, of 5 files (5 KiB), 1 symlink and 1 dir",
        ),
        ('rm "$1"/link; : >"$1"/link', "1 changed, of 5 files (5 KiB), 1 symlink and 1 directory: "),
        ('echo >>"$1"/file1', "1 of 5 files (5 KiB) changed: "),
    ],
)
def test_the_counts_say_what_is_true(tree: Path, script: str, said: str) -> None:
    tree.chmod(0o755)
    done = guard(str(tree), "--", "sh", "-c", script, "sh", str(tree))
    assert done.returncode == 1
    assert done.stderr.decode().startswith(f"FAIL  {said}")


def test_what_passes_is_counted_and_what_was_not_read_is_named(tree: Path) -> None:
    os.mkfifo(tree / "fifo")
    done = guard(str(tree), "--", "true")
    assert done.returncode == 0
    first, _, note = done.stderr.decode().splitlines()
    assert first.startswith("PASS  5 files (5 KiB), 1 symlink, 1 directory and 1 other entry are as they were: true (")
    assert note == f"1 entry is no regular file and was not read: {tree}/fifo."
    value = json.loads(guard(str(tree), "--json", "--", "true").stdout)
    assert (value["files"], value["symlinks"], value["directories"]) == (5, 1, 1)
    assert value["not_read"] == [str(tree / "fifo")]


def test_many_changes_are_bounded_in_text_alone(tree: Path, tmp_path: Path) -> None:
    for number in range(300):
        (tree / f"{number:03}").touch()
    done = guard(str(tree), "--output", str(tmp_path / "report"), "--", "sh", "-c", 'rm "$1"/*', "sh", str(tree))
    lines = done.stderr.decode().splitlines()
    assert lines[0].startswith("FAIL  306 gone, ")
    assert lines[-1] == "… and 286 more: --json and --output have them all."
    assert len(lines) == 1 + 20 * 3 + 2
    assert len(json.loads((tmp_path / "report").read_bytes())["changes"]) == 306


def test_what_passes_is_printed_last(tree: Path) -> None:
    script = 'touch "$1"/file0 "$1"/file1; echo >>"$1"/file4'
    done = guard(str(tree), "--", "sh", "-c", script, "sh", str(tree))
    named = [line.rpartition("/")[2] for line in done.stderr.decode().splitlines() if line.startswith(str(tree))]
    assert named == ["file4", "file0", "file1"]


WAITS = "read line <fifo"
"""What a process that is left behind does until the test lets it go."""


@pytest.mark.parametrize("detached", ["", "setsid "])
def test_a_process_that_is_left_behind_with_a_file_open_is_no_pass(memory: Path, tmp_path: Path, detached: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    holder = f"{detached}sh -c 'exec 9<>memory; : >ready; {WAITS}'"
    script = f"cd {tmp_path}; ({holder} >/dev/null 2>&1 &); until [ -e ready ]; do :; done"
    try:
        done = guard(str(memory), "--json", "--", "sh", "-c", script)
    finally:
        (tmp_path / "fifo").write_bytes(b"\n")
    assert done.returncode == 2
    value = json.loads(done.stdout)
    assert (value["verdict"], value["reason"]) == ("INCONCLUSIVE", "one is open for writing still")
    (change,) = value["changes"]
    (held,) = change["held_by"]
    assert held.startswith("descriptor 9 (writable) of sh (pid ")
    assert change["harmless"]
    (runs,) = value["command"]["still_running"]
    assert held.endswith(runs)


def test_processes_that_are_left_behind_and_hold_nothing_pass_with_a_note(memory: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    script = f"cd {tmp_path}; (setsid sh -c ': >ready; {WAITS}' >/dev/null 2>&1 &); until [ -e ready ]; do :; done"
    try:
        done = guard(str(memory), "--", "sh", "-c", script)
    finally:
        (tmp_path / "fifo").write_bytes(b"\n")
    assert done.returncode == 0
    first, _, note = done.stderr.decode().splitlines()
    assert first.startswith("PASS  1 file (8 KiB) is as it was")
    assert note.startswith("1 process of the command still runs: what it does from now on is not seen: sh (pid ")


def test_a_script_that_waits_for_the_end_of_what_it_left_does_not_wait_in_vain(memory: Path) -> None:
    """Whoever adopts orphans must reap them: to kill -0 a zombie is there."""
    script = "pid=$(sh -c 'sleep 0.1 >/dev/null 2>&1 & echo $!'); while kill -0 $pid 2>/dev/null; do sleep 0.02; done"
    assert guard(str(memory), "--", "timeout", "10", "sh", "-c", script).returncode == 0


@pytest.mark.parametrize("end", ["", "/"])
def test_a_symlink_is_refused_with_the_name_of_what_it_points_to(memory: Path, tmp_path: Path, end: str) -> None:
    (tmp_path / "link").symlink_to("sub" if end else "memory")
    (tmp_path / "sub").mkdir()
    done = guard(f"{tmp_path}/link{end}", "--", "true")
    assert done.returncode == 2
    target = (tmp_path / ("sub" if end else "memory")).resolve()
    assert f"Name what it points to: {target}" in done.stderr.decode()


@pytest.mark.parametrize("target", ["nowhere", "link"])
def test_of_a_symlink_that_leads_nowhere_that_is_said(tmp_path: Path, target: str) -> None:
    (tmp_path / "link").symlink_to(target)
    done = guard(f"{tmp_path}/link", "--", "true")
    assert done.returncode == 2
    assert f"It points to {target}, which is not there." in done.stderr.decode()
