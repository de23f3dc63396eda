"""The lab itself: KVM that works, the host's files and none of its state, the command's own streams and status, nothing left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ramet.process import wait_until
from tests.capabilities import requires
from tests.file_systems import WHOLE
from tools import loopfs

ROOT = Path(__file__).parent.parent.parent
LAB = [sys.executable, "-m", "lab"]
ENDS_WITHIN_S = 500.0
LAB_FAILED = 125
HUNG = "lab: it hung while it booted; once more\n"
"""What it says of a boot that it gave up, once in some fifty."""
MARK = "RAMET_TEST_LAB"
"""In the environment of what these tests start: the process that runs them."""

EVERYTHING = """
import fcntl, os, sys
KVM_GET_API_VERSION, KVM_CREATE_VM, KVM_CREATE_VCPU = 0xAE00, 0xAE01, 0xAE41
with open("/dev/kvm", "r+b", buffering=0) as kvm:
    vm = fcntl.ioctl(kvm, KVM_CREATE_VM, 0)
    print(fcntl.ioctl(kvm, KVM_GET_API_VERSION), fcntl.ioctl(vm, KVM_CREATE_VCPU, 0) > 0)
print(sorted(os.sched_getaffinity(0)), os.sched_getaffinity(1))
print(os.path.exists("/dev/vhost-vsock"), os.path.exists("/dev/net/tun"), os.path.exists("/dev/loop-control"))
print(os.getcwd(), os.environ["MARK"], os.environ["RAMET_LAB"])
print(sys.stdin.read())
print("to stderr", file=sys.stderr)
with open(sys.argv[1], "w") as stream:
    stream.write("seen in the lab alone")
print(open(sys.argv[1]).read(), open(sys.argv[2]).read())
sys.exit(7)
"""


def run(*options: str, command: Sequence[str], stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LAB, *options, "--", *command],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=ENDS_WITHIN_S,
        check=False,
        cwd=ROOT,
        env={**os.environ, **env},
    )


def labs() -> set[int]:
    """The lab's QEMUs that this process's tests have started: others run labs meanwhile."""
    mark = f"{MARK}={os.getpid()}".encode()
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if b"ramet-lab" in (entry / "cmdline").read_bytes() and mark in (entry / "environ").read_bytes().split(
                    b"\0"
                ):
                    found.add(int(entry.name))
            except OSError:
                continue
    return found


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(MARK, str(os.getpid()))
    files = names_in_var_tmp()
    assert labs() == set()
    yield
    wait_until(lambda: not labs(), 10, what="the lab to be gone")
    assert names_in_var_tmp() <= files


def names_in_var_tmp() -> set[str]:
    """But for file systems that other tests mount meanwhile."""
    return {path.name for path in Path("/var/tmp").iterdir() if not path.name.startswith(loopfs.PREFIX)}


@requires("qemu", "gcc")
def test_a_command_runs_as_if_it_ran_here_and_has_kvm(tmp_path: Path) -> None:
    there, here = tmp_path / "written", tmp_path / "ours"
    here.write_text("from the host")
    command = ["python", "-c", EVERYTHING, str(there), str(here)]
    done = run("--cpus", "3", command=command, stdin="through stdin", MARK="a b", RAMET_HOME="/x")
    assert done.stdout.splitlines() == [
        "12 True",
        "[1, 2, 3] {1, 2, 3}",  # CPU 0 is not the command's
        "True True True",
        f"{ROOT} a b 1",
        "through stdin",
        "seen in the lab alone from the host",
    ]
    assert (done.returncode, done.stderr.replace(HUNG, "")) == (7, "to stderr\n")
    assert not there.exists()


@requires("qemu", "gcc", "loopfs")
@pytest.mark.parametrize(("disk", "reflinks"), [("xfs:4G", 0), ("ext4:1G", 1)])
def test_a_disk_of_its_own(disk: str, reflinks: int) -> None:
    script = 'cd /run/lab/disk && echo x >a && cp --reflink=always a b 2>/dev/null; echo $? $RAMET_HOME; stat -fc "%T %b %S" .'
    first, second = run("--disk", disk, command=["sh", "-c", script]).stdout.splitlines()
    assert first == f"{reflinks} /run/lab/disk/home"
    kind, blocks, size = second.split()
    assert kind == {"xfs": "xfs", "ext4": "ext2/ext3"}[disk.partition(":")[0]]
    assert int(blocks) * int(size) > 0.8 * int(disk[-2]) * 1024**3


@requires("qemu", "gcc")
def test_a_reader_that_goes_away_ends_it_without_a_word() -> None:
    with subprocess.Popen([*LAB, "--", "yes"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as child:
        assert child.stdout
        assert child.stderr
        assert child.stdout.readline() == b"y\n"
        child.stdout.close()
        assert child.stderr.read().replace(HUNG.encode(), b"") == b""
        assert child.wait(timeout=60) == 128 + signal.SIGPIPE


@requires("qemu", "gcc")
def test_a_command_that_takes_too_long_is_ended() -> None:
    began = time.monotonic()
    done = run("--timeout", "1", command=["sleep", "600"])
    assert (done.returncode, done.stderr.replace(HUNG, "")) == (
        124,
        "lab: the command ran longer than 1 s and was ended\n",
    )
    assert time.monotonic() - began < 400


@requires("qemu", "gcc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, *([signal.SIGINT] if WHOLE else [])])
def test_a_signal_ends_the_command_and_the_lab(number: signal.Signals) -> None:
    child = subprocess.Popen([*LAB, "--", "sh", "-c", "echo up; exec sleep 600"], stdout=subprocess.PIPE, cwd=ROOT)
    with child:
        assert child.stdout
        assert child.stdout.readline() == b"up\n"
        child.send_signal(number)
        status = child.wait(timeout=60)
    assert status == (-number if number == signal.SIGKILL else 128 + number)


@requires("qemu", "gcc")
def test_one_signal_ends_a_lab_whose_command_ignores_it() -> None:
    command = "trap '' TERM; echo up; while :; do sleep 1; done"
    child = subprocess.Popen(
        [*LAB, "--", "sh", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    with child:
        assert child.stdout
        assert child.stdout.readline() == b"up\n"
        child.send_signal(signal.SIGTERM)
        _, err = child.communicate(timeout=60)
    assert child.returncode == LAB_FAILED
    assert b"did not end within 20 s of a signal" in err


@requires("qemu", "gcc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_it_comes_up(number: signal.Signals) -> None:
    with subprocess.Popen([*LAB, "--", "true"], stderr=subprocess.PIPE, text=True, cwd=ROOT) as child:
        wait_until(lambda: len(labs()) > 0, 30, what="QEMU")
        child.send_signal(number)
        _, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (130, "lab: interrupted\n")


@requires("qemu", "gcc")
def test_what_cannot_be_run_is_told_as_shells_do() -> None:
    done = run(command=["no-such-command"])
    assert done.returncode == 127
    assert "no-such-command" in done.stderr


@requires("qemu", "gcc")
def test_a_disk_that_no_file_system_can_hold() -> None:
    done = run("--disk", "xfs:99999999G", command=["true"])
    assert done.returncode == LAB_FAILED
    assert "make a disk of 99999999 GiB" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--disk", "zfs:4G"], "is no disk"),
        (["--disk", "xfs:0G"], "is no disk"),
        (["--memory", "64"], "memory"),
        (["--cpus", "0"], "cpus"),
        (["--nonsense"], "nonsense"),
    ],
)
def test_bad_options_are_refused_before_anything_is_started(options: list[str], said: str) -> None:
    done = run(*options, command=["true"])
    assert done.returncode == LAB_FAILED
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_no_qemu(tmp_path: Path) -> None:
    done = run(command=["true"], PATH=str(tmp_path))
    assert done.returncode == LAB_FAILED
    assert "'qemu-system-x86_64' is not on this host" in done.stderr
