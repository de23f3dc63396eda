"""The same sequences over real guests: a real image on real VMMs, and words in real RAM and on real disks."""

from __future__ import annotations

import os
import select
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from hypothesis.stateful import initialize

from ramet import Host
from ramet.errors import RametError
from ramet.model import MIB, Hypervisor, State
from ramet.paths import StorePaths
from tests import guest_images
from tests.model.expected import Expected, Taken
from tests.model.faults import Losses
from tests.model.machine import Words

MEMORY_MIB = 128
DISK_BYTES = 32 * MIB
EXEC_S = 60.0
ENDS_WITHIN_MS = 60_000
SAY = """\
sync; echo 3 >/proc/sys/vm/drop_caches
for file in /ram/w0 /ram/w1 /ram/w2 /ram/w3 /data/w0 /data/w1 /data/w2 /ram/register; do cat $file 2>/dev/null || echo 0; done
cat /run/ramet/generation; echo; hostname
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a guest says of itself."""

    words: Words
    generation: int
    hostname: str


class GuestStage:
    """A store with the real image, under ``base``; ``close`` ends what lives in it."""

    def __init__(self, base: Path) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="ramet-model-", dir=base))
        self.paths = StorePaths(home=guest_images.give(self._directory / "home"))
        self.host = Host(self.paths.home)

    def close(self) -> None:
        for info in self.host.list():
            self.host.remove(info.name, force=True)
        shutil.rmtree(self._directory)

    def create(self, name: str, hypervisor: Hypervisor) -> str:
        return self.host.create(name, memory_mib=MEMORY_MIB, disk_bytes=DISK_BYTES, hypervisor=hypervisor).id

    def write(self, name: str, words: Words) -> Seen:
        """Write words, each to a page of its own, and sync; returns what the guest saw before that."""
        files = {f"/ram/w{index}": word for index, word in enumerate(words.ram)}
        files |= {f"/data/w{index}": word for index, word in enumerate(words.disk)} | {"/ram/register": words.register}
        writes = "".join(f"echo {word} >{file}\n" for file, word in files.items())
        result = self.host.exec(name, ["sh", "-c", f"{SAY}{writes}sync"], timeout_s=EXEC_S)
        assert result.exit_status == 0, result.stderr
        said = result.stdout.decode().split()
        numbers = [int(word) for word in said[:-1]]
        return Seen(
            words=Words(ram=tuple(numbers[:4]), disk=tuple(numbers[4:7]), register=numbers[7]),
            generation=numbers[8],
            hostname=said[-1],
        )

    def power_off(self, name: str) -> None:
        """By a command in the guest; returns once the VMM has ended."""
        with self._ending(name), suppress(RametError):  # the session may end before the command does
            self.host.exec(name, ["poweroff"], timeout_s=EXEC_S)

    def kill(self, name: str) -> None:
        """The VMM, from outside; returns once it has ended."""
        with self._ending(name) as pid:
            os.kill(pid, signal.SIGKILL)

    @contextmanager
    def _ending(self, name: str) -> Iterator[int]:
        """The VMM's pid, and after the block its end."""
        pid = self.host.get(name).pid
        assert pid is not None
        pidfd = os.pidfd_open(pid)
        try:
            yield pid
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            assert poll.poll(ENDS_WITHIN_MS), f"the VMM of {name} has not ended"
        finally:
            os.close(pidfd)

    def alive(self) -> list[Path]:
        """Where a VMM lives."""
        return [Path(info.run_dir) for info in self.host.list() if info.pid is not None]


class GuestSequences(Losses):
    """A sequence over real guests. All that they write is synced, so a kill takes nothing from a disk."""

    hypervisors: ClassVar = [Hypervisor.QEMU]

    place: Path
    """The directory of the stores."""

    @initialize()
    def open(self) -> None:
        """An empty store."""
        self.acting = GuestStage(self.place)

    def check_words(self, expected: Expected) -> None:
        """By a command in the guest that the last verb was about."""
        if expected.state is not State.RUNNING or self.asked not in (None, expected.name):
            return
        after = self.next_words(expected.words)
        seen = self.stage.write(expected.name, after)
        assert seen == Seen(words=expected.words, generation=expected.generation, hostname=expected.name)
        expected.words = after
        expected.sync()
        expected.settle()

    def check_published(self, taken: Taken) -> None:
        """A guest that wakes from it will tell."""
