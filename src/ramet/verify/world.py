"""What a scenario works with: the Host, its own instances, the ledger, and the named points at which a sabotage may strike."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from ramet.errors import GuestError, RametError
from ramet.instances.host import Host
from ramet.model import MIB, Hypervisor, InstanceInfo, MemoryPolicy, Ping, SnapshotInfo
from ramet.verify import fingerprints, isolation, survey
from ramet.verify.checks import Ledger
from ramet.verify.fingerprints import Fingerprint

DISK_BYTES = 64 * MIB
FILL_PERCENT = 55
SMALL_FILL_BYTES = 16 * MIB
"""What a source fills where a copy need not stand out."""
GUEST_RESERVE_BYTES = 16 * MIB
"""Left free in the guest, so that filling its memory does not wake its out-of-memory killer."""
GUEST_TIMEOUT_S = 120.0
TOKEN_BYTES = 32


class Point(StrEnum):
    """The named points of the scenarios. A sabotage strikes at one of them."""

    BOOTED = "the source has booted"
    FILLING = "before the source fills its memory"
    FORKED = "after the fork"
    RUNNER_RESTORING = "before the fork that is to run is restored"
    FORK_RESTORING = "before the fork is restored"
    FORK_RESTORED = "after the fork was restored"
    FORK_SLEPT = "after the fork's diff snapshot"
    FORK_DELETED = "after the fork was deleted"
    SOURCE_RESTORING = "before the source is restored"
    SOURCE_SLEPT = "after the source's second sleep"
    SLEEPER_RESTORING = "before the sleeping fork is restored"
    SOURCE_WAKING_AGAIN = "before the source is restored from its second snapshot"
    SIBLINGS_FORKED = "after the siblings were forked"
    SIBLINGS_SLEPT = "after all siblings slept"
    CHAIN_GREW = "after one more fork of the chain slept"
    CHAIN_CUT = "after the source and the middle of the chain were deleted"
    LIVE_FORKED = "after the fork of a running source"
    REWOUND = "after the source went back to its snapshot"
    ZEROED_SLEPT = "after the source's sleep with zeroed pages"
    SLEPT_AGAIN = "after the source's sleep with nothing written"
    SWAPPED_SLEPT = "after the second sleep of a VMM that was swapped out"
    COUNTING = "before the source is forked and put to standby at once"
    TOGETHER_SLEPT = "after it was forked and put to standby at once"
    FLIGHT_RESTORED = "after one of those with requests in flight was restored"
    TICKING = "before the source of a pool is put to standby"
    CLAIMED = "after two parked forks were claimed"
    DRAWING = "before the source draws all the time"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who a guest believes to be."""

    hostname: str
    machine_id: str
    generation: str


class CutShortError(RametError):
    """A scenario cannot go on; the checks that it has not reached are INCONCLUSIVE."""

    code = "cut-short"


@dataclass(slots=True)
class World:
    """One scenario's run. Instances are made under names of its own and removed at its end."""

    host: Host
    memory_mib: int
    hypervisor: Hypervisor
    ledger: Ledger
    say: Callable[[str], None]
    strike: Callable[[World, Point], None]
    memory_policy: MemoryPolicy = MemoryPolicy.CLONE
    """Of all forks."""
    why_no_vmm_users: str | None = "nobody has asked"
    """None if each VMM must run as a user of its own on this host."""
    tag: str = field(default_factory=lambda: secrets.token_hex(3))
    steps: list[survey.Step] = field(default_factory=list)
    baselines: dict[str, dict[str, Fingerprint]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    """The instances' names, by role."""
    snapshot_names: dict[str, str] = field(default_factory=dict)
    fill_bytes: int = 0
    randomness: dict[str, set[str]] = field(default_factory=dict)
    users: dict[str, int] = field(default_factory=dict)
    """Whom each role's VMM last ran as."""
    boots: dict[str, Ping] = field(default_factory=dict)
    """What the agent said before the sleep, by role; so are the following."""
    identities: dict[str, Identity] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    """Its sentinels."""
    sums: dict[str, str] = field(default_factory=dict)
    """Of all memory that was filled."""
    directories: dict[str, Path] = field(default_factory=dict)
    """Of the snapshot whose files must not change."""
    notes: dict[str, str] = field(default_factory=dict)
    """What a sabotage leaves for its next strike."""

    def name(self, role: str) -> str:
        """The name of the instance that plays ``role``; it will be removed at the end."""
        return self.names.setdefault(role, f"verify-{self.tag}-{role}")

    def fork(self, source: str, *roles: str, start: bool = False) -> None:
        """Fork one role into others, under the memory policy of this run."""
        names = [self.name(role) for role in roles]
        self.host.fork(self.name(source), names, start=start, memory_policy=self.memory_policy)

    def named_snapshot(self, role: str, name: str) -> SnapshotInfo:
        """Take a snapshot of ``role``; it will be removed at the end."""
        full = self.snapshot_names.setdefault(name, f"verify-{self.tag}-{name}")
        return self.host.snapshot_create(self.name(role), full)

    def reach(self, point: Point) -> None:
        """A named point was reached."""
        self.strike(self, point)

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """One step of the scenario: told to the person who waits, timed, and looked back at."""
        self.say(f"{self.ledger.scenario}: {text}")
        began = time.monotonic()
        try:
            yield
        except BaseException:
            self.steps.append(survey.Step(text=text, seconds=time.monotonic() - began, unseen="it failed"))
            raise
        seconds = time.monotonic() - began
        self.steps.append(survey.step(text, seconds, self.host, self.names, self.snapshot_names))

    # -- guests -----------------------------------------------------------------------------------------------

    def guest(self, role: str, script: str, *, arguments: Sequence[str] = ()) -> str:
        """Run a shell script in a guest and return what it wrote.

        Raises:
            GuestError: if it failed; a guest that does not do as it is told proves nothing.
        """
        argv = ["sh", "-c", script, "sh", *arguments]
        result = self.host.exec(self.name(role), argv, timeout_s=GUEST_TIMEOUT_S)
        if result.exit_status != 0:
            told = result.stderr.decode(errors="replace").strip()[-200:]
            raise GuestError(f"In {role}, {script!r} ended with status {result.exit_status}: {told}")
        return result.stdout.decode(errors="replace").strip()

    def write_sentinels(self, role: str, token: str) -> None:
        """Write a token over the same page in RAM and the same block on disk as before; the disk is synced."""
        self.guest(
            role,
            'for place in /ram /data; do printf %s "$1" | dd of=$place/sentinel conv=notrunc 2>/dev/null || exit 1; done; sync',
            arguments=[token],
        )
        self.tokens[role] = token

    def read_sentinels(self, role: str) -> tuple[str, str]:
        """The tokens in RAM and on disk; the disk's is read anew, not from the guest's page cache."""
        found = self.guest(
            role, "set -e; sync; echo 3 >/proc/sys/vm/drop_caches; cat /ram/sentinel; echo; cat /data/sentinel"
        ).split("\n")
        return found[0], found[-1]

    def fill(self, role: str, seed: int, size_bytes: int) -> None:
        """Fill memory with incompressible data, the same pages each time."""
        self.guest(role, 'ramet-fill /ram/fill "$1" "$2"', arguments=[str(size_bytes), str(seed)])

    def memory_sum(self, role: str) -> str:
        """A sum over all memory that was filled, computed in the guest."""
        return self.guest(role, ": >>/ram/fill; ramet-fill --sum /ram/fill")

    def note_memory_sum(self, role: str) -> None:
        """Remember what the memory of ``role`` must sum up to from here on."""
        self.sums[role] = self.memory_sum(role)

    def free_memory_bytes(self, role: str) -> int:
        return int(self.guest(role, "awk '/^MemAvailable/ {print $2}' /proc/meminfo")) * 1024

    def draw_randomness(self, role: str) -> set[str]:
        """Two draws from the kernel's generator, by two ways."""
        return set(
            self.guest(role, "cat /proc/sys/kernel/random/uuid; head -c 16 /dev/urandom | od -An -tx1").split("\n")
        )

    # -- evidence ---------------------------------------------------------------------------------------------

    def info(self, role: str) -> InstanceInfo:
        return self.host.get(self.name(role))

    def snapshot_dir(self, role: str) -> Path:
        """The directory of the snapshot that an instance sleeps on, or woke from."""
        snapshot = self.info(role).snapshot
        if snapshot is None:
            raise CutShortError(f"{role} has no snapshot.")
        return Path(snapshot.dir)

    def identity(self, role: str) -> Identity:
        """Ask a guest who it is."""
        lines = self.guest(role, "hostname; cat /etc/machine-id /run/ramet/generation").split("\n")
        return Identity(hostname=lines[0], machine_id=lines[1], generation=lines[2])

    def remember_guest(self, role: str) -> None:
        """Keep what a guest must still know after it was woken: boot nonce, tick, identity, and the sum of its memory."""
        self.boots[role] = self.host.ping(self.name(role))
        self.identities[role] = self.identity(role)
        self.note_memory_sum(role)

    def inherit(self, role: str, source: str) -> None:
        """``role`` was forked from ``source``: it must have the same boot, sentinels and memory."""
        self.boots[role] = self.boots[source]
        self.tokens[role] = self.tokens[source]
        self.sums[role] = self.sums[source]

    def remember_files(self, role: str) -> None:
        """Take the fingerprints of a sleeping instance's snapshot, where it is now."""
        self.directories[role] = self.snapshot_dir(role)
        self.remember(role)

    def remember(self, role: str) -> None:
        """Take the fingerprints of what is in ``directories``, which must not change from here on."""
        directory = self.directories[role]
        found = fingerprints.fingerprints(directory)
        self.baselines[role] = {name: self._as_published(directory / name, one) for name, one in found.items()}

    def _as_published(self, path: Path, found: Fingerprint) -> Fingerprint:
        return isolation.as_published(path, found) if self.memory_policy is MemoryPolicy.SHARE else found

    def changes(self, role: str, *, drop_cache: bool = False) -> dict[str, list[str]]:
        """What has changed since ``remember``, by file; the files are looked up where they were, not where Ramet says."""
        before = self.baselines[role]
        directory = self.directories[role]
        found: dict[str, list[str]] = {}
        for name, fingerprint in before.items():
            try:
                now = self._as_published(
                    directory / name, fingerprints.fingerprint(directory / name, drop_cache=drop_cache)
                )
            except FileNotFoundError:
                found[name] = ["it is gone"]
                continue
            found[name] = fingerprints.differences(fingerprint, now)
        added = (
            sorted(path.name for path in directory.iterdir() if path.name not in before) if directory.is_dir() else []
        )
        if added:
            found["(directory)"] = [f"{name} appeared" for name in added]
        return found

    # -- the end ----------------------------------------------------------------------------------------------

    def remove_all(self) -> list[str]:
        """Remove every instance and named snapshot of this run; returns what could not be removed."""
        failed = []
        for one in self.host.pools():
            if one.source in self.names.values():
                self.host.pool(one.source, size=0)
        for name in reversed(self.names.values()):
            if not self.host.exists(name):
                continue
            try:
                self.host.remove(name, force=True)
            except RametError as err:
                failed.append(f"{name}: {err.message}")
        names = {name for snapshot in self.host.snapshots() for name in snapshot.names}
        for name in self.snapshot_names.values():
            if name not in names:
                continue
            try:
                self.host.snapshot_remove(name)
            except RametError as err:
                failed.append(f"snapshot:{name}: {err.message}")
        return failed


def fresh_token() -> str:
    """A sentinel: 64 hexadecimal digits, so that equality is no accident and searching finds nothing else."""
    return secrets.token_hex(TOKEN_BYTES)


def boot_source(world: World) -> None:
    """Boot the source and fill a little of its memory."""
    with world.step("booting the source"):
        name = world.name("source")
        world.host.create(name, memory_mib=world.memory_mib, disk_bytes=DISK_BYTES, hypervisor=world.hypervisor)
    world.fill_bytes = min(SMALL_FILL_BYTES, fill_size(world, "source"))
    world.fill("source", seed=1, size_bytes=world.fill_bytes)


def sleeping_source(world: World, token: str) -> None:
    """Boot the source, let it write ``token``, and put it to standby; what it knows and its files are remembered."""
    boot_source(world)
    fall_asleep(world, token)


def fall_asleep(world: World, token: str) -> None:
    """Let the source, which runs, write ``token``, and put it to standby; what it knows and its files are remembered."""
    with world.step("putting it to standby"):
        world.write_sentinels("source", token)
        world.remember_guest("source")
        world.host.standby(world.name("source"))
    world.remember_files("source")


def fill_size(world: World, role: str) -> int:
    """How much the guest can fill: ``FILL_PERCENT`` of its RAM, or what it has free less a reserve."""
    free_bytes = max(world.free_memory_bytes(role) - GUEST_RESERVE_BYTES, 0)
    return min(world.memory_mib * MIB * FILL_PERCENT // 100, free_bytes)
