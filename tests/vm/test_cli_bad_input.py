"""Bad input through the command line: a clear message, the documented status, nothing changed and nothing left behind.

Bad names are in tests/unit/test_cli_names.py, damaged records in test_cli_damage.py.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ramet import Host
from ramet.config import host_memory_mib
from ramet.model import MIB, UNSEALED, InstanceInfo
from ramet.process import wait_until
from ramet.snapshots.manifest import sealed
from tests import artifacts
from tests.capabilities import requires
from tests.vm.command_line import CommandLine, listing
from tests.vm.disk_space import take_all_but
from tests.vm.guests import sh
from tools.loopfs import loopfs

BAD_INPUT, NOT_FOUND, CONFLICT, UNSUPPORTED, HOST, NO_SPACE, VMM, INCOMPATIBLE, CORRUPT = 2, 3, 4, 7, 8, 9, 10, 14, 13

on_one_file_system = pytest.mark.parametrize("file_system", ["ext4"], indirect=True)


@pytest.fixture
def ramet(host: Host) -> CommandLine:
    return CommandLine(host.home)


def refused(ramet: CommandLine, *argv: str, status: int) -> dict[str, Any]:
    """The error of a command that must be refused and leave the store, and every VMM, as it was."""
    before = store_of(ramet)
    error = ramet.error(*argv, status=status)
    assert store_of(ramet) == before, argv
    assert error["message"].endswith((".", "\n")) or "\n" in error["message"], "a sentence"
    return error


def store_of(ramet: CommandLine) -> tuple[dict[str, list[str]], set[int]]:
    """What is in a store; a lock that a reader took stays as a file, and is not counted."""
    names = listing(ramet.home)
    names.pop("locks")
    return names, artifacts.vmm_pids(f"{ramet.home}/")


# -- the wrong state ----------------------------------------------------------------------------------------------

VERBS: dict[str, tuple[str, ...]] = {
    "exec": ("exec", "web", "true"),
    "cp": ("cp", "/etc/hostname", "web:/data/x"),
    "console": ("console", "web"),
    "pause": ("pause", "web"),
    "resume": ("resume", "web"),
    "standby": ("standby", "web"),
    "restore": ("restore", "web"),
    "stop": ("stop", "web"),
    "start": ("start", "web"),
    "fork": ("fork", "web"),
    "snapshot create": ("snapshot", "create", "web"),
    "rm": ("rm", "web"),
}
REFUSED = {
    "running": {"rm"},
    "paused": {"exec", "cp", "restore", "start", "rm"},
    "standby": {"exec", "cp", "console", "pause", "resume", "stop", "start"},
    "stopped": {"exec", "cp", "console", "pause", "resume", "standby", "restore", "snapshot create"},
    "failed": set(VERBS) - {"start", "rm"},
}
"""For each state the verbs that do not start from it. The others succeed: the tests of the instance's life have those."""


@on_one_file_system
def test_a_verb_in_the_wrong_state_changes_nothing(host: Host, ramet: CommandLine, running: InstanceInfo) -> None:
    for state, verbs in REFUSED.items():
        bring_to(host, state)
        before = ramet.json("show", "web")
        assert before["state"] == state
        for verb in sorted(verbs):
            if verb == "console":  # with --json it does not attach, and works in every state
                assert "ramet " in ramet.run(*VERBS[verb]).refused(CONFLICT)
                continue
            error = refused(ramet, *VERBS[verb], status=CONFLICT)
            assert (error["code"], error["actual"]) == ("wrong-state", state), verb
            assert error["required"], verb
            assert state not in error["required"], verb
            assert "ramet " in error["hint"], f"{verb}: what to do next"
        assert ramet.json("show", "web") == before


def bring_to(host: Host, state: str) -> None:
    match state:
        case "paused":
            host.pause("web")
        case "standby":
            host.standby("web")
        case "stopped":
            host.stop("web", discard_memory=True)
        case "failed":
            pid = host.start("web").pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: host.get("web").failure, 60, what="the loss of the VMM to be seen")


# -- names and sizes ----------------------------------------------------------------------------------------------


@on_one_file_system
def test_names_that_are_taken(host: Host, ramet: CommandLine, running: InstanceInfo) -> None:
    ramet.text("snapshot", "create", "web", "golden")
    refused(ramet, "create", "web", status=CONFLICT)
    refused(ramet, "fork", "web", "new", "web", status=CONFLICT)
    refused(ramet, "fork", "web", "new", "new", status=BAD_INPUT)
    refused(ramet, "snapshot", "create", "web", "golden", status=CONFLICT)
    refused(ramet, "restore", "web", "--snapshot", "nosuch", status=NOT_FOUND)
    for count in ("0", "-1", "100000", "1"):
        refused(ramet, "fork", "web", "a", "b", "-n", count, status=BAD_INPUT)
    assert sh(host, "web", "cat /ram/mark") == "ram-source"


@on_one_file_system
@pytest.mark.parametrize(
    "options",
    [
        ("--memory", "0"),
        ("--memory", "1M"),
        ("--memory", f"{host_memory_mib() + 1}M"),
        ("--memory", "999999999999999G"),
        ("--memory", "-5"),
        ("--memory", "some"),
        ("--cpus", "0"),
        ("--cpus", "1000"),
        ("--disk", "0"),
        ("--disk", "1M"),
        ("--disk", "17000001K"),
        ("--boot-timeout", "0"),
        ("--hypervisor", "other"),
    ],
    ids=" ".join,
)
def test_sizes_that_cannot_be(ramet: CommandLine, options: tuple[str, ...]) -> None:
    refused(ramet, "create", "web", *options, status=BAD_INPUT)


# -- what the host lacks ------------------------------------------------------------------------------------------

BROKEN_QEMU = """#!/bin/sh
case "$*" in
  --version) echo "QEMU emulator version 7.2.0 (Broken)";;
  *) echo "broken: no such machine" >&2; exit 1;;
esac
"""


@on_one_file_system
def test_without_a_vmm_or_an_image(ramet: CommandLine, tmp_path: Path) -> None:
    nothing = {"PATH": "/nonexistent", "RAMET_QEMU": ""}
    for changes in ({"RAMET_QEMU": "/nonexistent"}, {"RAMET_QEMU": "/etc/passwd"}, nothing):
        error = refused(CommandLine(ramet.home, changes), "create", "web", status=UNSUPPORTED)
        assert error["hint"]
    error = refused(CommandLine(ramet.home, {"PATH": "/nonexistent"}), "image", "build", status=UNSUPPORTED)
    assert "apt-get install" in error["hint"]
    assert "ramet image build" in refused(ramet, "create", "web", "--image", "nosuch", status=NOT_FOUND)["hint"]
    without = CommandLine(ramet.home, {"RAMET_FIRECRACKER": "/nonexistent"})
    refused(without, "create", "web", "--hypervisor", "firecracker", status=UNSUPPORTED)

    broken = tmp_path / "qemu"
    broken.write_text(BROKEN_QEMU)
    broken.chmod(0o755)
    error = refused(CommandLine(ramet.home, {"RAMET_QEMU": str(broken)}), "create", "web", status=VMM)
    assert "broken: no such machine" in error["message"], "what the VMM said"
    assert ramet.run("doctor").status == 0


@on_one_file_system
@pytest.mark.parametrize("argv", [("ls",), ("create", "web"), ("image", "build")], ids=" ".join)
def test_homes_that_are_none(ramet: CommandLine, tmp_path: Path, argv: tuple[str, ...]) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    (tmp_path / "link").symlink_to(ramet.home)
    before = sorted(tmp_path.rglob("*"))
    for home in (
        tmp_path / "file",
        tmp_path / "file" / "below",
        tmp_path / "none" / "below",
        tmp_path / "full",
        tmp_path / "link",
        Path("relative"),
        Path("/tmp/a\nb"),
        Path("/"),
    ):
        CommandLine(home).run(*argv).refused(BAD_INPUT)
    assert sorted(tmp_path.rglob("*")) == before


@on_one_file_system
def test_a_long_home_works(store_home: Path) -> None:
    """Socket paths hold 108 bytes (unix(7)); ours go through /proc/self/fd."""
    home = store_home.parent / ("long-" * 20) / ("home, with a comma=" * 5)
    assert len(str(home)) > 200
    shutil.copytree(store_home / "images", home / "images")
    home.chmod(0o700)
    ramet = CommandLine(home)
    try:
        ramet.text("create", "web", "--disk", "64M")
        ramet.text("standby", "web")
        ramet.text("restore", "web")
        assert ramet.text("exec", "web", "--", "hostname") == "web\n"
        typed = b"echo up-$((40 + 2))\n"  # again: it ends after a second of silence, also of one that is held up
        wait_until(lambda: "up-42" in ramet.text("console", "web", stdin=typed), 60, what="the console to answer")
    finally:
        ramet.run("rm", "--all", "--force")
        shutil.rmtree(home.parent)


# -- a store that cannot be written -------------------------------------------------------------------------------

SMALL_MIB = 420


@pytest.fixture
def small(store_home: Path) -> Iterator[CommandLine]:
    """A store on a file system of its own that a test can fill or make read-only."""
    with loopfs("ext4", size_mib=SMALL_MIB) as mount:
        home = mount / "home"
        shutil.copytree(store_home / "images", home / "images")
        home.chmod(0o700)
        ramet = CommandLine(home)
        yield ramet
        ramet.run("rm", "--all", "--force")


@requires("loopfs", "qemu")
@on_one_file_system
def test_a_disk_that_is_full_or_read_only(small: CommandLine) -> None:
    small.text("create", "web", "--disk", "32M")
    small.text("exec", "web", "--", "sh", "-c", f"ramet-fill /ram/fill {48 * MIB} 1; echo kept >/ram/mark")
    ballast = small.home.parent / "ballast"
    for leaving_bytes, argv in (
        (8 * MIB, ("standby", "web")),
        (2 * MIB, ("snapshot", "create", "web")),
        (1 * MIB, ("fork", "web", "-n", "2")),
        (0, ("create", "other")),
        (0, ("standby", "web")),
    ):
        take_all_but(ballast, leaving_bytes)
        error = refused(small, *argv, status=NO_SPACE)
        assert "ree some room" in error["hint"], argv
        assert (
            small.text("exec", "web", "--", "cat", "/ram/mark", "/sys/fs/cgroup/workload/cgroup.freeze") == "kept\n0\n"
        )
    ballast.unlink()
    small.text("standby", "web")

    mount = str(small.home.parent)
    subprocess.run(["mount", "-o", "remount,ro", mount], check=True)
    try:
        for argv in (("restore", "web"), ("create", "other"), ("fork", "web"), ("rm", "web")):
            error = refused(small, *argv, status=HOST)
            assert "read-only" in error["hint"]
    finally:
        subprocess.run(["mount", "-o", "remount,rw", mount], check=True)
    small.text("restore", "web")
    assert small.text("exec", "web", "--", "cat", "/ram/mark") == "kept\n"


# -- snapshots that cannot be used --------------------------------------------------------------------------------


@on_one_file_system
def test_a_snapshot_that_does_not_fit_or_is_damaged(host: Host, ramet: CommandLine, standby: InstanceInfo) -> None:
    assert standby.snapshot is not None
    directory = Path(standby.snapshot.dir)
    manifest = directory / "manifest.json"
    whole = manifest.read_bytes()
    for key, value, named in (
        ("version", "Debian 1:8.2.0", "8.2.0"),
        ("cpu_model", "EPYC", "EPYC"),
        ("accelerator", "kvm", "kvm"),
        ("devices", "0" * 16, "device list"),
    ):
        changed = json.loads(whole) | {"seal": UNSEALED}
        changed["vmm_build"][key] = value
        overwrite(manifest, sealed(json.dumps(changed).encode()))
        assert named in refused(ramet, "restore", "web", status=INCOMPATIBLE)["message"]
    for damage in (b"", b"{", b"\xff\xfe", whole.replace(b'"format_version": 2', b'"format_version": 9')):
        assert damage != whole
        overwrite(manifest, damage)
        for argv in (("restore", "web"), ("fork", "web"), ("stop", "web", "--discard-memory")):
            assert "manifest.json" in refused(ramet, *argv, status=CORRUPT)["message"]
    overwrite(manifest, whole)

    for path in (directory / "memory", directory / "vmstate", directory / "disk.raw"):
        size = path.stat().st_size
        path.chmod(0o600)
        kept = path.read_bytes()[-4096:]
        os.truncate(path, max(size - 4096, 0))
        for argv in (("restore", "web"), ("fork", "web")):
            assert path.name in refused(ramet, *argv, status=CORRUPT)["message"]
        with path.open("r+b") as stream:
            stream.seek(max(size - 4096, 0))
            stream.write(kept)
        path.chmod(0o400)
    ramet.text("restore", "web")
    assert sh(host, "web", "cat /ram/mark /data/mark") == "ram-source\ndisk-source"


def overwrite(path: Path, data: bytes) -> None:
    """As somebody with an editor would."""
    mode = stat.S_IMODE(path.stat().st_mode)
    path.chmod(0o600)
    path.write_bytes(data)
    path.chmod(mode)


# -- a guest that never answers -----------------------------------------------------------------------------------


@on_one_file_system
def test_a_vmm_that_does_not_answer(host: Host, ramet: CommandLine, running: InstanceInfo) -> None:
    assert running.pid is not None
    os.kill(running.pid, signal.SIGSTOP)
    try:
        error = refused(ramet, "pause", "web", status=VMM)
        assert "did not answer" in error["message"]
        assert ramet.json("show", "web")["state"] == "running"
    finally:
        os.kill(running.pid, signal.SIGCONT)
    assert sh(host, "web", "cat /sys/fs/cgroup/workload/cgroup.freeze /ram/mark") == "0\nram-source"
    os.kill(running.pid, signal.SIGSTOP)
    stopped = ramet.text("stop", "web", "--force", "--timeout", "1")
    assert stopped == "web: stopped (killed: it did not shut down in time)\n"


@on_one_file_system
def test_a_guest_that_never_comes_up(ramet: CommandLine) -> None:
    error = refused(ramet, "create", "web", "--memory", "128M", "--boot-timeout", "0.2", status=VMM)
    assert "did not come up within 0.2 s" in error["message"]
