"""Who opens files for writing meanwhile: from fanotify where that is allowed, else by looking at /proc now and then."""

from __future__ import annotations

import logging
import os
import select
import stat
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ramet.linux import fanotify, procfs
from ramet.verify import evidence

log = logging.getLogger("ramet.guard")
POLL_S = 0.1
WATCHED = fanotify.FAN_OPEN | fanotify.FAN_MODIFY | fanotify.FAN_CLOSE_WRITE
LAST_BATCHES_MAX = 1000
"""Of events that are taken when the watch ends: a writer that never stops must not keep it."""
WROTE = "wrote to it"
COULD_WRITE = "had it open for writing"
Inode = tuple[int, int]
"""st_dev and st_ino."""


def name_of(pid: int) -> str:
    """``qemu-system-x86 (pid 42)``; the pid alone of a process that is gone. The kernel cuts names at 15 bytes."""
    if pid == 0:
        return "a process outside this pid namespace"
    try:
        name = Path(f"/proc/{pid}/comm").read_bytes().decode(errors="replace").strip()
    except OSError:
        return f"a process that has ended (pid {pid})"
    return f"{name} (pid {pid})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A process that can write to a file: ``descriptor 3 (writable) of dd (pid 42)``."""

    pid: int
    name: str
    path: Path
    inode: Inode
    how: str

    def __str__(self) -> str:
        return f"{self.how} of {self.name}"


def holders(files: Sequence[evidence.FileId]) -> list[Holder]:
    """Every other process that can write to one of the files by a descriptor or a shared mapping, once for each file."""
    found: dict[tuple[int, Inode], Holder] = {}
    for pid in evidence.processes():
        for one in evidence.reach(pid, files):
            inode = (one.file.dev, one.file.ino)
            if one.can_write and (pid, inode) not in found:
                held = Holder(pid=pid, name=name_of(pid), path=one.file.path, inode=inode, how=one.how)
                found[pid, inode] = held
    return list(found.values())


class Watch:
    """A context manager: it watches from its beginning to its end, in a thread."""

    def __init__(self, files: Sequence[evidence.FileId], directories: Sequence[Path]) -> None:
        """``files`` are looked for in /proc; in ``directories`` fanotify sees whatever is opened."""
        self.why_unseen: list[str] = []
        """Why some who wrote may have been missed."""
        self._writers: dict[Inode, dict[str, str]] = {}
        """Who, and the most that is known of them."""
        self.holders: list[Holder] | None = None
        """Who could write to the files when the watch ended; None if that is not known."""
        self._files = files
        self._names: dict[int, str] = {}
        self._group = self._fanotify([*(file.path for file in files), *directories])
        self._done = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="guard", daemon=True)
        hidden = evidence.hidden_processes()
        if hidden and self._group is None:
            self.why_unseen.append(f"{hidden} processes of others cannot be looked at")

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.eventfd_write(self._done, 1)
        self._thread.join()
        os.close(self._done)
        if self._group is not None:
            os.close(self._group)

    def writers_of(self, *inodes: Inode | None) -> tuple[str, ...]:
        """Who wrote, or could have, to any of these inodes, in words."""
        found: dict[str, str] = {}
        for inode in inodes:
            if inode is not None:
                found |= self._writers.get(inode, {})
        return tuple(f"{who} {what}" for who, what in sorted(found.items()))

    def _fanotify(self, paths: Sequence[Path]) -> int | None:
        group = None
        try:
            group = fanotify.create()
            for path in paths:
                fanotify.mark(group, path, WATCHED | (fanotify.FAN_EVENT_ON_CHILD if path.is_dir() else 0))
        except OSError as err:
            self.why_unseen.append(f"no fanotify here ({err.strerror}): /proc was looked at every {POLL_S * 1000:g} ms")
            if group is not None:
                os.close(group)
            return None
        return group

    def _run(self) -> None:
        try:
            self._watch()
        except (OSError, ValueError) as err:
            log.debug("the watch ended early", exc_info=True)
            self.why_unseen.append(f"the watch ended early: {err}")

    def _watch(self) -> None:
        """At once when something happens: a short-lived process must still have a name."""
        sources = [self._done] if self._group is None else [self._done, self._group]
        while True:
            ready, _, _ = select.select(sources, [], [], POLL_S if self._group is None else None)
            ends = self._done in ready
            if self._group is not None:
                batches = LAST_BATCHES_MAX if ends else 1
                while batches and self._take_events(self._group):
                    batches -= 1
            if self._group is None or ends:
                found = holders(self._files)
                for one in found:
                    self._note(one.inode, one.pid, COULD_WRITE)
            if ends:
                self.holders = found
                return

    def _take_events(self, group: int) -> bool:
        """Whether there were any."""
        taken = fanotify.events(group)
        for event in taken:
            if event.mask & fanotify.FAN_Q_OVERFLOW:
                self.why_unseen.append("there were more events than the kernel keeps")
                continue
            try:
                found = os.fstat(event.fd)
            finally:
                os.close(event.fd)
            if event.pid == os.getpid() or not stat.S_ISREG(found.st_mode):
                continue
            self._names.setdefault(event.pid, name_of(event.pid))
            inode = (found.st_dev, found.st_ino)
            if event.mask & fanotify.FAN_MODIFY:
                self._note(inode, event.pid, WROTE)
            elif event.mask & fanotify.FAN_CLOSE_WRITE or _can_write(event.pid, inode):
                self._note(inode, event.pid, COULD_WRITE)
        return bool(taken)

    def _note(self, inode: Inode, pid: int, what: str) -> None:
        who = self._names.setdefault(pid, name_of(pid))
        known = self._writers.setdefault(inode, {})
        if known.get(who) != WROTE:
            known[who] = what


def _can_write(pid: int, inode: Inode) -> bool:
    try:
        opened = procfs.open_descriptors(pid)
    except OSError:
        return False  # it has ended: if it could write, FAN_CLOSE_WRITE follows
    return any(one.writable and (one.dev, one.ino) == inode for one in opened)
