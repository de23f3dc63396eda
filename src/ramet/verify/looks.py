"""One look each from outside, at files and VMMs: gather evidence, compare, enter it in the ledger. Shared by the scenarios."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ramet import process
from ramet.linux import seccomp
from ramet.linux.mounts import file_system_of
from ramet.model import MIB, InstanceInfo, MemoryPolicy
from ramet.verify import evidence, isolation, needs
from ramet.verify.isolation import mib
from ramet.verify.world import CutShortError, World

WATCH_EVERY_S = 0.002
FILTERS = 2
"""A VMM's own filter of system calls, and the one that it is started with."""
CORES = "Max core file size"
CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")
LIMITS: Mapping[str, int] = {
    CORES: 1,
    "Max open files": 2048,
    "Max locked memory": 0,
    "Max nice priority": 0,
    "Max realtime priority": 0,
}
"""The most that any VMM may have (docs/security.md)."""
LIMITS_OF_A_USER: Mapping[str, int] = {"Max processes": 4096}
"""And one that has a user of its own."""
MANY = 5
"""How many of the same problem are told."""
SOURCE_CLAIMS = {
    "memory": "source-memory-unchanged",
    "disk.raw": "source-disk-unchanged",
    "vmstate": "source-state-unchanged",
    "manifest.json": "source-state-unchanged",
    "(directory)": "source-state-unchanged",
}


# -- files --------------------------------------------------------------------------------------------------------


def source_dirtied(world: World) -> None:
    """Is there enough data in the source's memory for a copy to be noticed?"""
    memory = world.baselines["source"]["memory"]
    ram_bytes = world.memory_mib * MIB
    problems = []
    if memory.allocated_bytes * 2 <= ram_bytes or world.fill_bytes * 2 <= memory.allocated_bytes:
        problems.append(
            f"{mib(memory.allocated_bytes)} of {world.memory_mib} MiB are data, {mib(world.fill_bytes)} incompressible"
        )
    found = f"{mib(memory.allocated_bytes)} of {world.memory_mib} MiB are data, {mib(world.fill_bytes)} incompressible"
    world.ledger.look("source-dirtied", "source asleep", problems, found=found)


def own_inodes(world: World, role: str, other: str, *, at: str, shares: bool = False) -> None:
    """No file of one snapshot may be the other's; ``shares``: it is the same snapshot, which nobody can write."""
    claim = "fork-own-inodes"
    mine, theirs = world.snapshot_dir(role), world.snapshot_dir(other)
    problems = isolation.shared_inodes(mine, theirs, may_be_the_same=shares)
    if shares:
        problems += [] if mine == theirs else [f"{role} has {mine} to itself: nothing is shared"]
        problems += isolation.strangers_who_can_write([world.info(role)])
        world.ledger.look(claim, at, problems, found=f"{mine.name} is shared, and nobody can write its files")
        return
    pairs = [
        f"{path.name} {(theirs / path.name).stat().st_ino} / {path.stat().st_ino}"
        for path in sorted(mine.iterdir())
        if (theirs / path.name).exists()
    ]
    world.ledger.look(claim, at, problems, found=f"inodes, source / fork: {', '.join(pairs)}")


def modes(world: World, roles: Sequence[str]) -> None:
    """Published files are 0400, or shared, in a directory of the owner's alone."""
    directories = [world.snapshot_dir(role) for role in roles]
    may_be = world.memory_policy is MemoryPolicy.SHARE
    problems = [one for directory in directories for one in isolation.loose_modes(directory, may_be_shared=may_be)]
    count = sum(1 for directory in directories for _ in directory.iterdir())
    world.ledger.look(
        "snapshot-modes", "forked", problems, found=f"{count} files are 0400{' or shared' if may_be else ''}"
    )


def source_unchanged(world: World, at: str, *, drop_cache: bool = False) -> None:
    """Compare every file of the source's snapshot with what it was."""
    changes = world.changes("source", drop_cache=drop_cache)
    suffix = ", read anew from the disk" if drop_cache else ""
    for claim in dict.fromkeys(SOURCE_CLAIMS.values()):
        names = [name for name in SOURCE_CLAIMS if SOURCE_CLAIMS[name] == claim]
        problems = [f"{name}: {problem}" for name in names for problem in changes.get(name, [])]
        known = [world.baselines["source"][name] for name in names if name in world.baselines["source"]]
        world.ledger.look(claim, at, problems, found=f"{known[0]}{suffix}")


def sleeper_unchanged(world: World, at: str, *, drop_cache: bool = False) -> None:
    """Compare every file of the sleeping fork's snapshot with what it was."""
    files_unchanged(world, "sleeping-fork-unchanged", "sleeper", at=at, drop_cache=drop_cache)


def files_unchanged(world: World, claim: str, role: str, *, at: str, drop_cache: bool = False) -> None:
    """Compare every file of a snapshot with what it was when it was remembered under ``role``."""
    changes = world.changes(role, drop_cache=drop_cache)
    problems = [f"{name}: {problem}" for name, wrong in changes.items() for problem in wrong]
    suffix = ", read anew from the disk" if drop_cache else ""
    memory = world.baselines[role]["memory"]
    world.ledger.look(claim, at, problems, found=f"{len(changes)} files as they were; memory: {memory}{suffix}")


def disk_usage(world: World, role: str, source: str) -> None:
    """What the fork occupies beyond what it shares with its source, by physical extents."""
    claim = "fork-disk-usage"
    limit_bytes = world.memory_mib * MIB // 4
    why = needs.why_no_reflinks(world.host.home)
    source_files = sorted(world.directories[source].iterdir())
    try:
        own, shared = evidence.own_bytes(isolation.files_of(world.info(role)), source_files)
    except OSError as err:
        world.ledger.undecided(
            claim, f"the file system cannot tell extents: {os.strerror(err.errno or 0)}", required=why is None
        )
        return
    found = f"{mib(own)} of its own, {mib(shared)} shared with the source"
    if why is not None:
        kind = file_system_of(world.host.home)
        world.ledger.undecided(claim, f"{kind} has no reflinks ({why}): {found}, as a copy costs", required=False)
        return
    problems = [f"{found}; the limit is {mib(limit_bytes)}"] if own > limit_bytes else []
    world.ledger.look(claim, "fork's diff snapshot", problems, found=f"{found}; the limit is {mib(limit_bytes)}")


# -- VMMs ---------------------------------------------------------------------------------------------------------


def live_vmm(world: World, role: str, others: Sequence[str], *, at: str) -> None:
    """What a live VMM maps, and what it could write of other instances."""
    info = world.info(role)
    pid = _pid(info)
    images = evidence.identify(isolation.image_files(world.host))
    mapped = isolation.mapped_memory(
        pid,
        evidence.identify(isolation.files_of(info)),
        images,
        memory_mib=world.memory_mib,
        shared=isolation.shared_memory(info) if world.memory_policy is MemoryPolicy.SHARE else None,
    )
    world.ledger.look(
        "vmm-maps-privately", f"{at}: {role}", mapped.problems, found=mapped.found, enforced=mapped.enforced
    )
    confined(world, role, at=at)
    if not others:
        return
    infos = [world.info(other) for other in others]
    foreign = evidence.identify(path for other in infos for path in isolation.files_of(other))
    problems = isolation.can_write(pid, foreign)
    if not foreign:
        problems.append(f"no file of {', '.join(others)} was found to look at")
    problems += isolation.strangers_who_can_write(infos)
    reached = evidence.reach(pid, foreign)
    reads = ", ".join(f"{one.way} on {one.file.path.parent.name}/{one.file.path.name}" for one in reached[:MANY])
    hidden = evidence.hidden_processes()
    unseen = f"; {hidden} processes of other users could not be looked at" if hidden else ""
    world.ledger.look(
        "vmm-cannot-write-others",
        f"{at}: {role}",
        problems,
        found=f"process {pid} can write none of {len(foreign)} files of other instances, nor can any other{unseen}; it "
        + (f"reads {reads}" if reads else "has none of them open or mapped"),
        enforced=True,
    )


def confined(world: World, role: str, *, at: str) -> None:
    """What the kernel lets a live VMM do at most, were it taken over. What it does not refuse here is told as weak (H70)."""
    pid = _pid(world.info(role))
    has = evidence.privileges(pid)
    problems = [] if has.no_new_privileges else [f"process {pid} can gain privileges: it has no no_new_privs"]
    why_no_filter = seccomp.why_not()
    if why_no_filter is None and has.filters is not None and has.filters < FILTERS:
        problems.append(f"process {pid} has {has.filters} filters of system calls, not its own and Ramet's")
    if has.mergeable_bytes:
        problems.append(f"{mib(has.mergeable_bytes)} of process {pid} may be merged with other processes' memory (KSM)")
    limits = LIMITS if has.user == os.geteuid() else {**LIMITS, **LIMITS_OF_A_USER}
    for what, most in limits.items():
        limit = has.limits.get(what)
        if limit is None or limit > most:
            problems.append(f"process {pid} has no limit of {most}, but of {limit}: {what.lower()}")
    others = {user: other for other, user in world.users.items() if other != role}
    world.users[role] = has.user
    weak = [f"no filter of Ramet's: {why_no_filter}"] if why_no_filter is not None else []
    if has.user == os.geteuid() and world.why_no_vmm_users is None:
        problems.append(f"process {pid} runs as user {has.user}, as we do")
    elif has.user == os.geteuid():
        whose = "it runs as we do" if has.user else f"it is root (capabilities {has.capabilities:x})"
        weak.append(f"{whose}: {world.why_no_vmm_users}")
    elif has.user in others:
        problems.append(f"process {pid} runs as user {has.user}, as {others[has.user]}'s VMM does")
    elif has.capabilities:
        problems.append(f"process {pid} has capabilities ({has.capabilities:x})")
    if has.limits.get(CORES) == 0 and CORE_PATTERN.read_text().startswith("|"):
        weak.append("its core would be piped to a program: it has a limit of 0 for cores, and not of 1")
    if has.filters is None:
        weak.append("the kernel does not count filters of system calls")
    whom = f"user {has.user}, no capability" if not has.capabilities else f"user {has.user}"
    found = f"process {pid}: {whom}, no_new_privs, {has.filters} filters of system calls, limits, nothing merged" + (
        f"; weak: {', '.join(weak)}" if weak else ""
    )
    world.ledger.look("vmm-confined", f"{at}: {role}", problems, found=found, enforced=not weak)


@contextmanager
def watched(world: World, role: str, others: Sequence[str], *, at: str) -> Iterator[None]:
    """Look, again and again while the block restores ``role``, at what this process and all that begin meanwhile could write of
    sleeping instances (H21).

    Raises:
        CutShortError: if the VMM of ``role`` was not among them: then nobody has seen anything.
    """
    files = evidence.identify(path for other in others for path in isolation.files_of(world.info(other)))
    before = set(evidence.processes())
    ended = threading.Event()
    seen: dict[str, None] = {}
    times: dict[int, int] = {}
    failed: list[OSError] = []

    def watch() -> None:
        try:
            while not ended.is_set():
                for pid in (os.getpid(), *(pid for pid in evidence.processes() if pid not in before)):
                    seen.update(dict.fromkeys(isolation.can_write(pid, files)))
                    times[pid] = times.get(pid, 0) + 1
                ended.wait(WATCH_EVERY_S)
        except OSError as err:
            failed.append(err)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    claim, pid = "vmm-cannot-write-others", None
    try:
        yield
        pid = world.info(role).pid
    finally:
        ended.set()
        watcher.join()
        if seen:
            world.ledger.look(claim, at, list(seen)[:MANY], found="")
    if failed:
        raise failed[0]
    if pid not in times:
        raise CutShortError(f"Nobody saw how {role} was restored: its VMM was never looked at.")
    if not seen:
        found = f"looked {times[pid]} times at process {pid} and what started it: none could write any of {len(files)} files"
        world.ledger.look(claim, at, [], found=found)


# -- traces -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Traces:
    """What must be gone once an instance is deleted."""

    pid: int
    started_ticks: int | None
    directories: tuple[Path, ...]


def traces(world: World, role: str) -> Traces:
    """What a live instance consists of on the host."""
    info = world.info(role)
    pid = _pid(info)
    directories = (Path(info.run_dir).parent, world.snapshot_dir(role))
    return Traces(pid=pid, started_ticks=process.start_time_ticks(pid), directories=directories)


def nothing_left(world: World, role: str, before: Traces) -> None:
    """Process, directories and name are gone."""
    problems = [f"{path} is still there" for path in before.directories if path.exists()]
    if before.started_ticks is not None and process.start_time_ticks(before.pid) == before.started_ticks:
        problems.append(f"process {before.pid} still runs")
    if world.host.exists(world.name(role)):
        problems.append(f"the name {world.name(role)} still means an instance")
    world.ledger.look(
        "nothing-left",
        f"{role} deleted",
        problems,
        found=f"process {before.pid}, {len(before.directories)} directories and the name are gone",
    )


def _pid(info: InstanceInfo) -> int:
    if info.pid is None:
        raise CutShortError(f"{info.name} has no VMM: it is {info.state.value}.")
    return info.pid
