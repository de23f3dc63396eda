"""A real store and a real ``Host`` over VMs that are played.

Played are: the two drivers (``played_drivers.py``), what ``choice.py`` finds on the host, and Landlock, the image (real format,
no kernel in it), the smallest sizes, and ``mkfs.ext4``: a guest's disk is words in an empty file. All else is what it is for a
user.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from ramet import Host, config, helpers, process
from ramet.guests.image import CMDLINE, DESCRIPTION
from ramet.helpers import Completed
from ramet.hypervisors import confinement
from ramet.instances import choice
from ramet.instances.context import Store
from ramet.model import Accelerator, ExecResult, Hypervisor, Image, VmmProcess
from ramet.paths import StorePaths
from ramet.store import atomic, names
from tests.model.machine import DISK_BYTES, MEMORY_MIB, Words, words_of
from tests.model.played_drivers import PlayedVmms

IMAGE = Image(
    digest="0" * 32,
    name="micro",
    created_at_unix_s=0.0,
    kernel_version="none",
    kernel="kernel",
    initrd="initrd",
    cmdline=CMDLINE,
    inputs={},
    size_bytes=0,
)
_rooms: dict[Path, PlayedVmms] = {}


def build_vmm(directory: Path) -> Path:
    """Compile ``vmm.c``; static, since it starts sooner."""
    program = directory / "vmm"
    source = Path(__file__).with_name("vmm.c")
    subprocess.run(["gcc", "-static", "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, source], check=True)
    return program


def play(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put what is played in the place of what is real."""
    run, find_program = helpers.run, helpers.find_program

    def chosen(hypervisor: Hypervisor | None, accelerator: Accelerator | None) -> choice.Choice:
        return choice.Choice(hypervisor=hypervisor or Hypervisor.QEMU, accelerator=Accelerator.TCG, why=None)

    def run_but_mkfs(argv: Sequence[str], **options: Any) -> Completed:
        return Completed(argv=tuple(argv), stdout=b"", stderr="") if argv[0] == "mkfs.ext4" else run(argv, **options)

    def find_but_mkfs(name: str, **options: Any) -> str:
        return name if name == "mkfs.ext4" else find_program(name, **options)

    monkeypatch.setattr(Store, "driver", lambda store, hypervisor: _rooms[store.paths.home].driver(hypervisor))
    monkeypatch.setattr(choice, "choose", chosen)
    monkeypatch.setattr(confinement, "why_no_landlock", lambda: None)
    monkeypatch.setattr(helpers, "run", run_but_mkfs)
    monkeypatch.setattr(helpers, "find_program", find_but_mkfs)
    monkeypatch.setattr(config, "MEMORY_MIN_MIB", MEMORY_MIB)
    monkeypatch.setattr(config, "DISK_MIN_BYTES", DISK_BYTES)


class PlayedStage:
    """One empty store under ``base`` and the room of its VMs; ``close`` deletes both, whatever is left in them."""

    def __init__(self, base: Path, program: Path, *, mapped_read_only: bool) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="ramet-model-", dir=base))
        self.paths = StorePaths(home=self._directory / "home")
        self.host = Host(self.paths.home)
        directory = self.paths.images / IMAGE.digest
        directory.mkdir()
        for name in (IMAGE.kernel, IMAGE.initrd):
            (directory / name).touch()
        atomic.write_json(directory / DESCRIPTION, IMAGE)
        self.room = _rooms[self.paths.home] = PlayedVmms(program, mapped_read_only=mapped_read_only)

    def close(self) -> None:
        self.room.close()
        del _rooms[self.paths.home]
        shutil.rmtree(self._directory)

    def create(self, name: str, hypervisor: Hypervisor) -> str:
        """A new instance; returns its id."""
        made = self.host.create(
            name, image=IMAGE.digest, memory_mib=MEMORY_MIB, disk_bytes=DISK_BYTES, hypervisor=hypervisor
        )
        return made.id

    def write(self, name: str, words: Words) -> Words:
        """Write words that differ, by a command in a running guest; returns what it saw before that."""
        found = json.loads(self.told(name, "write", json.dumps(asdict(words))).stdout)
        return words_of(found)

    def power_off(self, name: str) -> None:
        """By a command in the guest; returns once the VMM has ended."""
        vmm = self.vmm(name)
        self.told(name, "poweroff")
        assert process.wait_gone(vmm, 10.0)

    def kill(self, name: str) -> None:
        """The VMM, from outside."""
        self.room.machine(self.run_dir(name)).kill()

    def alive(self) -> list[Path]:
        """Where a VMM lives."""
        return self.room.alive()

    def vmm(self, name: str) -> VmmProcess:
        return self.room.machine(self.run_dir(name)).vmm

    def run_dir(self, name: str) -> Path:
        instance_id = names.lookup(self.paths.instance_names, name)
        assert instance_id is not None
        return self.paths.instance(instance_id).run

    def told(self, name: str, *argv: str) -> ExecResult:
        """What a guest's command has said; it has ended well."""
        result = self.host.exec(name, argv)
        assert result.status == 0, f"{argv[0]} in {name} ended with {result.status}: its workload is frozen"
        return result
