"""A place in which a hostile program is started as a VMM is, and the means that are to hold it."""

from __future__ import annotations

import json
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from ramet import process
from ramet.hypervisors import confinement, users
from ramet.hypervisors.base import BootFiles, Hardware, LaunchSpec
from ramet.linux import landlock, procfs, seccomp
from ramet.model import MIB, Accelerator
from tests.capabilities import any_python
from tests.unit.hypervisors import hostile

PYTHON = any_python()
PROGRAM = Path(__file__).with_name("hostile.py")
INSTANCE_ID = "0123456789ab"
FEWER_TASKS = 40


@dataclass(frozen=True, kw_only=True)
class Place:
    """An instance, its image and snapshot, and another instance with a live process and sockets."""

    spec: LaunchSpec
    victim: Path
    victim_pid: int
    abstract: str

    def run(self, *, memory_is_written: bool = False, needs_calls: tuple[str, ...] = ()) -> dict[str, str]:
        """What came of each act of a confined hostile program."""
        assert self.spec.boot is not None
        own = self.spec.work_dir.parent
        said_path = self.spec.vmm_log.with_name("said")
        for path in (said_path, self.spec.run_dir / "own.sock", own / hostile.GO):
            path.unlink(missing_ok=True)
        arguments = [self.spec.boot.kernel, self.spec.memory, self.victim, self.victim_pid]
        arguments += [stack_of(self.victim_pid), self.abstract, self.spec.hardware.memory_mib * MIB]
        confined = confinement.of(
            self.spec, PYTHON, kvm=False, memory_is_written=memory_is_written, needs_calls=needs_calls
        )
        with confined.lent():
            confined.hand_over()
            vmm = process.spawn(
                [PYTHON, "-I", "work/hostile.py", ".", *map(str, arguments)],
                log_path=self.spec.vmm_log,
                stdout_path=said_path,
                pass_fds=(),
                cwd=own,
                mark=self.spec.run_dir,
                limits=confined.limits,
                starter=confined.start,
            )
            (own / hostile.GO).touch()
            try:
                assert process.wait_gone(vmm, 60)
            finally:
                process.kill_and_wait(vmm)
        said = said_path.read_text()
        assert said, self.spec.vmm_log.read_text()
        found: dict[str, str] = json.loads(said)
        return found


def made() -> Iterator[Place]:
    """All of it open to every user, as a store is not: what is refused is refused by the confinement."""
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ramet-test-")))
        root.chmod(0o755)
        own, image, snapshot, victim = (root / name for name in ("own", "image", "snapshot", "victim"))
        for directory in (own, own / "work", own / "run", own / "logs", image, snapshot, victim):
            directory.mkdir()
        shutil.copyfile(PROGRAM, own / "work/hostile.py")
        for path in (own / "instance.json", own / "work/disk.raw", image / "kernel", image / "initrd"):
            path.write_bytes(b"content")
        for path in (snapshot / "memory", own / "work/spare", own / "work/other"):
            path.write_bytes(b"#!/bin/sh\n")
        for number in range(15):
            (victim / str(number)).write_bytes(b"victim's")
        for path in (own / "instance.json", image / "kernel", image / "initrd", snapshot / "memory"):
            path.chmod(0o400)
        abstract = f"ramet-test-{secrets.token_hex(4)}"
        for address in (str(victim / "qmp.sock"), f"\0{abstract}"):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.bind(address)
            sock.listen()
        datagrams = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        datagrams.bind(f"\0{abstract}d")
        for path in (victim, *victim.iterdir()):
            path.chmod(0o777)
        sleeper = subprocess.Popen(["sleep", "600"])
        stack.callback(sleeper.wait)
        stack.callback(sleeper.kill)
        yield Place(
            spec=LaunchSpec(
                instance_id=INSTANCE_ID,
                name="web",
                hardware=Hardware(memory_mib=128, cpus=1, accelerator=Accelerator.TCG),
                memory=snapshot / "memory",
                disk=own / "work/disk.raw",
                work_dir=own / "work",
                run_dir=own / "run",
                vmm_log=own / "logs/vmm.log",
                console_log=own / "logs/console.log",
                boot=BootFiles(kernel=image / "kernel", initrd=image / "initrd", cmdline=""),
            ),
            victim=victim,
            victim_pid=sleeper.pid,
            abstract=abstract,
        )


def only(monkeypatch: pytest.MonkeyPatch, *wanted: str) -> None:
    """Of the means of confinement, leave those that are named."""
    if "landlock" not in wanted:
        monkeypatch.setattr(landlock, "abi_version", absent)
    if "seccomp" not in wanted:
        monkeypatch.setattr(seccomp, "why_not", lambda: "there is none")
    if "user" not in wanted:
        monkeypatch.setattr(users, "why_no_users", lambda *_args, **_kw: "there is none")


def absent() -> int:
    raise OSError(95, "Operation not supported")


def stack_of(pid: int) -> int:
    """An address that a process can write to."""
    return next(one.start for one in procfs.mappings(pid) if one.path == "[stack]")


def done(found: dict[str, str]) -> set[str]:
    return {act for act, result in found.items() if result == "done"}
