"""The values that Ramet keeps on disk and hands out: frozen, keyword-only, typed.

Everything here is data. Files carry a ``format_version``; a reader refuses a version that it does not know.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

import msgspec

INSTANCE_FORMAT_VERSION: Final = 1
UNSEALED: Final = "0" * 64
MANIFEST_FORMAT_VERSION: Final = 2
IMAGE_FORMAT_VERSION: Final = 1

MIB: Final = 1024 * 1024
PAGE_BYTES: Final = 4096


Id = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{12}\Z")]
"""An id that becomes a path: nothing else is ever read back from a record, so none can lead out of the store (H46)."""
Pid = Annotated[int, msgspec.Meta(ge=1, le=4 * 1024 * 1024)]
"""Up to the kernel's PID_MAX_LIMIT."""


class State(StrEnum):
    """The state of an instance; states.py holds the transitions."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STANDBY = "standby"
    PARKED = "parked"
    """A fork that waits in a pool: loaded, its vCPUs stopped, its workload frozen since the snapshot."""
    STOPPED = "stopped"
    FAILED = "failed"


class Failure(StrEnum):
    """Why an instance is ``failed``."""

    VMM_LOST = "vmm-lost"
    GUEST_PANICKED = "guest-panicked"
    CREATE_FAILED = "create-failed"
    RECORD_DAMAGED = "record-damaged"
    """Its instance.json cannot be read; made up for showing, never written."""


class Hypervisor(StrEnum):
    """Which VMM an instance runs on."""

    QEMU = "qemu"
    FIRECRACKER = "firecracker"


class Accelerator(StrEnum):
    """What runs the guest's code. A snapshot taken under one is refused under the other."""

    TCG = "tcg"
    KVM = "kvm"


class Method(StrEnum):
    """How a file was derived from another."""

    REFLINK = "reflink"
    COPY = "copy"


class MemoryPolicy(StrEnum):
    """Whose inode a fork's memory is, until its first sleep."""

    CLONE = "clone"
    """Its own, from the moment that it is made."""
    SHARE = "share"
    """Its source's published one, or a sealed copy in RAM of that, which all such forks map and the kernel lets none write."""


class SnapshotKind(StrEnum):
    """``full``: the first after a boot. ``diff``: only dirty pages were written, onto a derivation of the base."""

    FULL = "full"
    DIFF = "diff"
    FORK = "fork"


class Value(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all values."""


class VmmProcess(Value, frozen=True, kw_only=True):
    """A VMM found again by pid *and* start time (clock ticks after boot, /proc/PID/stat field 22) *and* boot id."""

    pid: Pid
    start_time_ticks: int
    boot_id: str


class VmmBuild(Value, frozen=True, kw_only=True):
    """What must match between the VMM that saved a device state and the one that loads it."""

    hypervisor: Hypervisor
    version: str
    accelerator: Accelerator
    machine: str
    cpu_model: str
    devices: str
    """A digest of the guest-visible command line: same devices, same order."""


class Ancestor(Value, frozen=True, kw_only=True):
    """One step of a lineage: the instance that was forked, and the snapshot that the fork began from (if it had one)."""

    instance_id: str
    name: str
    snapshot_id: str | None


class CopyInRam(Value, frozen=True, kw_only=True):
    """A copy in RAM of a snapshot's memory, that Ramet made and sealed: a memfd, known by its device and inode."""

    snapshot_id: Id
    dev: int
    ino: int
    file_ino: int
    file_mtime_ns: int
    """Of the published file, when this was copied from it: while they are the same nobody has put another in its place, or has
    written it."""


class InstanceRecord(Value, frozen=True, kw_only=True):
    """instances/<id>/instance.json: replaced atomically, the truth about one instance."""

    format_version: int = INSTANCE_FORMAT_VERSION
    id: Id
    name: str
    state: State
    failure: Failure | None = None
    failure_detail: str | None = None
    created_at_unix_s: float
    hypervisor: Hypervisor
    image: str
    """The digest of the image that the instance was created with."""
    memory_mib: int
    cpus: int
    disk_bytes: int
    machine_id: str
    """The guest's /etc/machine-id, 32 hexadecimal digits: each instance has its own."""
    lineage: tuple[Ancestor, ...] = ()
    memory_policy: MemoryPolicy = MemoryPolicy.CLONE
    """``share``: it may wake from the snapshot that it was forked from, which is another instance's."""
    snapshot: Id | None = None
    """The snapshot that the instance sleeps on (standby), or the last one it woke from or wrote (running, failed)."""
    mapped_snapshot: Id | None = None
    """The snapshot whose memory the live VMM maps."""
    copy_in_ram: CopyInRam | None = msgspec.field(default=None, name="template")
    """What it maps in the place of ``mapped_snapshot``'s file, if that is the snapshot that this is a copy of. ``template`` is
    its name on disk: what other versions read and write."""
    diff_base: Id | None = None
    """The snapshot that the VMM's next diff is relative to."""
    needs_full: bool = False
    """A capture that the VMM wrote itself may be lost, and with it the dirty pages: the next one must be whole (H12, H66)."""
    vmm: VmmProcess | None = None
    vmm_build: VmmBuild | None = None
    pool: Id | None = None
    """Of a fork that is parked, or that was lost while it was: whose pool it is in, an instance's or a snapshot's."""
    pending: str | None = None
    """The verb that is at work. Found without its lock held, its command died half-way: the next command tidies up."""
    generation: int = 0
    """How many times an identity has been given: changes with every restore and fork."""
    console_offset_bytes: int = 0
    """Where in the console's log the output of the latest VMM begins."""

    @property
    def pool_source(self) -> str | None:
        """Whose pool it is in, as ``ramet pool`` takes it: the name that the source had, or ``snapshot:ID``; None: in none."""
        if self.pool is None or not self.lineage:
            return self.pool
        parent = self.lineage[-1]
        return parent.name if parent.instance_id == self.pool else f"snapshot:{self.pool}"

    @property
    def references(self) -> tuple[str, ...]:
        """The ids of the snapshots that it needs, each once: none of them may be deleted."""
        needed = dict.fromkeys((self.snapshot, self.mapped_snapshot, self.diff_base))
        return tuple(one for one in needed if one is not None)


class SnapshotFile(Value, frozen=True, kw_only=True):
    """One file of a snapshot, as it was published."""

    size_bytes: int
    method: Method | None = None
    """How it was derived from its base; None if it was written from nothing."""
    written_bytes: int = 0
    """Bytes that Ramet wrote into it after deriving (dirty pages)."""
    pieces: int = 0
    """Of memory: into how many places diffs of this instance have written since it was last written whole."""
    sha256: str | None = None
    """Of the device state."""
    root: str | None = None
    """Of memory and disk: the root of their sums (ramet.snapshots.sums)."""


class Manifest(Value, frozen=True, kw_only=True):
    """snapshots/<id>/manifest.json, the last file written before publication."""

    format_version: int = MANIFEST_FORMAT_VERSION
    id: Id
    kind: SnapshotKind
    created_at_unix_s: float
    instance_id: str
    instance_name: str
    parent: str | None
    """The snapshot whose memory this one was derived from: history, not a reference."""
    image: str
    memory_mib: int
    cpus: int
    vmm_build: VmmBuild
    vmstate_id: str
    """The id of the capture that vmstate, memory and disk come from; a fork keeps it."""
    memory: SnapshotFile
    vmstate: SnapshotFile
    disk: SnapshotFile
    seal: str = UNSEALED
    """SHA-256 of the file with zeros in the place of this; zeros again once it has been read and found right."""


class Image(Value, frozen=True, kw_only=True):
    """images/<digest>/image.json."""

    format_version: int = IMAGE_FORMAT_VERSION
    digest: str
    name: str
    created_at_unix_s: float
    kernel_version: str
    kernel: str
    """File name of the kernel inside the image's directory."""
    initrd: str
    """File name of the initramfs inside the image's directory."""
    cmdline: str
    """Kernel command line that every guest of this image is booted with."""
    tick_hz: int | None = None
    """How often its kernel ticks; None if that is not known."""
    inputs: dict[str, str]
    """What it was built from: package or source name to version or SHA-256."""
    size_bytes: int


class MappedMemory(Value, frozen=True, kw_only=True):
    """Guest memory as /proc/PID/maps shows it."""

    path: str
    dev: str
    """major:minor in hexadecimal, as ``maps`` prints it (btrfs prints another than stat gives)."""
    ino: int
    writable: bool
    """A descriptor of the VMM can write to that inode: isolation is held, not enforced."""


class SnapshotInfo(Value, frozen=True, kw_only=True):
    """A snapshot as ``show`` and ``snapshot ls`` give it; paths are absolute."""

    id: str
    names: tuple[str, ...]
    dir: str
    memory: str
    vmstate: str
    disk: str
    method: Method | None
    """How its memory was derived from its base."""
    kind: SnapshotKind
    parent: str | None
    instance_id: str
    instance_name: str
    created_at_unix_s: float
    memory_mib: int
    written_bytes: int
    referenced_by: tuple[str, ...]


class SnapshotDamage(Value, frozen=True, kw_only=True):
    """Something in a snapshot that is not what was published."""

    file: str
    text: str
    pages: tuple[tuple[int, int], ...] = ()
    """(first, past the last) 4 KiB pages of memory or disk that it is about."""


class SnapshotCheck(Value, frozen=True, kw_only=True):
    """``snapshot check`` of one snapshot."""

    id: str
    names: tuple[str, ...]
    instance_name: str | None
    """Of which it was taken; None: its manifest cannot be read, and no record that can be read knows it."""
    whole: bool
    damage: tuple[SnapshotDamage, ...]
    read_bytes: int
    duration_s: float
    mend: str | None = None
    """What a person can do about a manifest that cannot be read."""


class RemovalPlan(Value, frozen=True, kw_only=True):
    """What ``rm`` would do to an instance."""

    id: str
    name: str
    state: State | None
    """None: its record is damaged, and nobody knows."""
    kills_pid: int | None
    """Its VMM, which loses the guest's memory and what the disk has not got yet."""
    deletes_snapshots: tuple[str, ...]
    keeps_snapshots: dict[str, tuple[str, ...]]
    """By id: who else refers to it."""
    damaged: str | None = None


class InstanceInfo(Value, frozen=True, kw_only=True):
    """An instance as ``show --json`` gives it (the stable surface); paths are absolute."""

    id: str
    name: str
    state: State
    failure: Failure | None
    failure_detail: str | None
    hypervisor: Hypervisor
    accelerator: Accelerator | None
    pid: int | None
    memory_mib: int
    cpus: int
    disk_bytes: int
    image: str
    created_at_unix_s: float
    lineage: tuple[Ancestor, ...]
    memory_policy: MemoryPolicy
    snapshot: SnapshotInfo | None
    mapped_snapshot: str | None
    diff_base: str | None
    live_disk: str | None
    mapped_memory: MappedMemory | None
    run_dir: str
    logs: dict[str, str]
    """``console`` and ``vmm``: absolute paths of the log files."""
    pool: str | None = None
    """Of a fork that is parked, or that was lost while it was: whose pool it is in, by id: an instance's or a snapshot's."""
    stale: bool = False
    """It is parked, and cannot be claimed: its source is not any more what it descends from."""


class ExecResult(Value, frozen=True, kw_only=True):
    """How a guest command ended: exactly one of ``status`` and ``signal`` is set, unless it was detached."""

    status: int | None
    signal: int | None
    timed_out: bool = False
    pid: int | None = None
    stdout: bytes = b""
    stderr: bytes = b""

    @property
    def exit_status(self) -> int:
        """As a shell gives it: the status, 128 + signal, or 124 for a time limit."""
        if self.timed_out:
            return 124
        if self.signal is not None:
            return 128 + self.signal
        return self.status or 0


class Ping(Value, frozen=True, kw_only=True):
    """The agent's answer: ``nonce`` is born at boot and kept only in RAM, ``tick`` counts up and never back."""

    nonce: str
    tick: int
    uptime_ns: int
    hostname: str
    generation: int


class Use(Value, frozen=True, kw_only=True):
    """What an instance, a snapshot or an image takes: disk by physical extents, and memory if it runs."""

    name: str
    kind: str
    """``instance``, ``snapshot``, ``image``, or ``total``: of all of them."""
    allocated_bytes: int
    """Of a total each block is counted once, however many files share it; where the file system can tell."""
    exclusive_bytes: int | None
    """Bytes in extents that no other file shares; None where the file system cannot tell."""
    apparent_bytes: int
    own_memory_bytes: int | None = None
    """What its VMM has in no file, in RAM or in swap: what the guest has written, and the VMM's own; None if there is none. Of a
    snapshot: the copy in RAM of its memory that forks share.
    """
    pss_bytes: int | None = None
    """Its VMM's proportional set size: pages that several processes map are divided among them (proc(5), smaps_rollup)."""


class ForkReport(Value, frozen=True, kw_only=True):
    """What a fork did, per new instance, with the source's pause where it was running."""

    instances: tuple[InstanceInfo, ...]
    source_pause_s: float | None
    method: Method | None
    failures: tuple[ForkFailure, ...] = ()
    """Those that could not be made, or did not come up, and were removed; where that was not to undo all."""
    left_in_pool: int | None = None
    """How many more can be claimed, where these came from a pool."""


class PoolInfo(Value, frozen=True, kw_only=True):
    """The parked forks of one source."""

    source: str
    """As ``ramet pool`` takes it: the instance's name or, of a snapshot, ``snapshot:NAME``, or ``snapshot:ID`` if it has none."""
    source_id: str
    snapshot: str | None
    """The id of the snapshot of which forks can be claimed; None: there is none now, and ``why`` says so."""
    why: str | None
    parked: tuple[str, ...]
    """The ids of those that can be claimed."""
    stale: tuple[str, ...]
    """The ids of those that are parked, and descend from an older snapshot than the one that the source sleeps on."""
    lost: tuple[str, ...]
    """The ids of those whose VMM has ended."""
    own_memory_bytes: int
    """What the VMMs of all of them have in no file, in RAM or in swap."""


class ForkFailure(Value, frozen=True, kw_only=True):
    """A fork that is not among the instances, and why."""

    name: str
    code: str
    """The error's, as in ``errors.py``."""
    exit_status: int
    message: str
    hint: str | None = None
    left_id: str | None = None
    """The id of what there is of it, where that could not be removed again; None: nothing is left."""
    left_why: str | None = None


class Capability(Value, frozen=True, kw_only=True):
    """One line of ``doctor``."""

    name: str
    available: bool
    why: str
    meaning: str
    mend: str | None = None


class Problem(Value, frozen=True, kw_only=True):
    """Something in the store that is not as it must be."""

    where: str
    """``instance NAME (ID)``, ``snapshot ID``, ``process PID``, a name, or a path."""
    text: str
    mend: str
    """What a repair does, or else what a person can."""
    can_be_mended: bool = False
    """Whether a repair mends it."""
    mended: bool = False


class StoreReport(Value, frozen=True, kw_only=True):
    """``doctor --store``: how much there is, and what is wrong with it."""

    instances: int
    snapshots: int
    vmms: int
    problems: tuple[Problem, ...]
    busy: tuple[str, ...]
    """What another command was at work on, and which was therefore not judged."""

    @property
    def whole(self) -> bool:
        """Whether nothing is wrong any more."""
        return all(problem.mended for problem in self.problems)
