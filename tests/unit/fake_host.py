"""A Host that records what it is asked, for the tests of the command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ramet.cli import context
from ramet.errors import NotFoundError
from ramet.model import (
    Accelerator,
    Ancestor,
    Capability,
    Failure,
    ForkFailure,
    ForkReport,
    Hypervisor,
    Image,
    InstanceInfo,
    MemoryPolicy,
    Method,
    PoolInfo,
    Problem,
    RemovalPlan,
    SnapshotCheck,
    SnapshotDamage,
    SnapshotInfo,
    SnapshotKind,
    State,
    StoreReport,
    Use,
)


def instance(name: str, state: State = State.RUNNING, **changes: Any) -> InstanceInfo:
    fields: dict[str, Any] = {
        "id": f"id-{name}",
        "name": name,
        "state": state,
        "failure": None,
        "failure_detail": None,
        "hypervisor": Hypervisor.QEMU,
        "accelerator": Accelerator.TCG,
        "pid": 4711 if state is State.RUNNING else None,
        "memory_mib": 256,
        "cpus": 1,
        "disk_bytes": 1 << 30,
        "image": "abc123",
        "created_at_unix_s": 1_700_000_000.0,
        "lineage": (),
        "memory_policy": MemoryPolicy.CLONE,
        "snapshot": None,
        "mapped_snapshot": None,
        "diff_base": None,
        "live_disk": None,
        "mapped_memory": None,
        "run_dir": f"/store/instances/id-{name}/run",
        "logs": {"console": "/c", "vmm": "/v"},
    }
    return InstanceInfo(**(fields | changes))


def snapshot(snapshot_id: str, *names: str, of: str = "web") -> SnapshotInfo:
    return SnapshotInfo(
        id=snapshot_id,
        names=names,
        dir=f"/store/snapshots/{snapshot_id}",
        memory="/m",
        vmstate="/s",
        disk="/d",
        method=Method.REFLINK,
        kind=SnapshotKind.DIFF,
        parent=None,
        instance_id=f"id-{of}",
        instance_name=of,
        created_at_unix_s=1_700_000_000.0,
        memory_mib=256,
        written_bytes=1536,
        referenced_by=(f"instance {of} (sleeps on it)",),
    )


IMAGE = Image(
    digest="abc123",
    name="micro",
    created_at_unix_s=1_700_000_000.0,
    kernel_version="6.1.0",
    kernel="vmlinuz",
    initrd="initrd",
    cmdline="quiet",
    inputs={},
    size_bytes=20 << 20,
)


def pool_of(source: str, **changes: Any) -> PoolInfo:
    fields: dict[str, Any] = {
        "source": source,
        "source_id": f"id-{source}",
        "snapshot": "s1",
        "why": None,
        "parked": (),
        "stale": (),
        "lost": (),
        "own_memory_bytes": 32 << 20,
    }
    return PoolInfo(**(fields | changes))


class FakeHost:
    """Knows ``web`` and ``db``; anything else is not found."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.fork_failures: tuple[ForkFailure, ...] = ()
        self.last_note: str | None = None
        gone = pool_of("old", snapshot=None, why="old was deleted", stale=("p2",))
        self.all_pools: Sequence[PoolInfo] = [pool_of("web", parked=("p1",)), gone]
        self.log_path = Path("/nonexistent")
        self.strange = 0
        """How many things in the store are not ours."""

    def _did(self, verb: str, name: str, **arguments: Any) -> None:
        self.calls.append((verb, {"name": name, **arguments}))
        if name not in ("web", "db"):
            raise NotFoundError(f"There is no instance {name!r}.", hint="`ramet ls` lists them.")

    def create(self, name: str, **arguments: Any) -> InstanceInfo:
        self.calls.append(("create", {"name": name, **arguments}))
        return instance(name)

    def pause(self, name: str) -> InstanceInfo:
        self._did("pause", name)
        return instance(name, State.PAUSED)

    def resume(self, name: str) -> InstanceInfo:
        self._did("resume", name)
        return instance(name)

    def standby(self, name: str) -> InstanceInfo:
        self._did("standby", name)
        return instance(name, State.STANDBY, snapshot=snapshot("s1"))

    def restore(self, name: str, **arguments: Any) -> InstanceInfo:
        self._did("restore", name, **arguments)
        return instance(name)

    def stop(self, name: str, **arguments: Any) -> InstanceInfo:
        self._did("stop", name, **arguments)
        return instance(name, State.STOPPED)

    def start(self, name: str) -> InstanceInfo:
        self._did("start", name)
        return instance(name)

    def remove(self, name: str, **arguments: Any) -> None:
        self._did("remove", name, **arguments)

    def removal_plan(self, name: str) -> RemovalPlan:
        return RemovalPlan(
            id=f"id-{name}",
            name=name,
            state=State.RUNNING,
            kills_pid=4711,
            deletes_snapshots=("s1",),
            keeps_snapshots={"s2": ("name golden", "instance blue (sleeps on it)")},
        )

    def fork(self, source: str, names: Sequence[str], **arguments: Any) -> ForkReport:
        self.calls.append(("fork", {"source": source, "names": tuple(names), **arguments}))
        lost = {failure.name for failure in self.fork_failures}
        made = tuple(instance(name, State.STANDBY) for name in names or ("web-1",) if name not in lost)
        if arguments.get("from_pool"):
            return ForkReport(instances=made, source_pause_s=None, method=None, left_in_pool=3)
        return ForkReport(instances=made, source_pause_s=0.012, method=Method.REFLINK, failures=self.fork_failures)

    def pool(self, source: str, **arguments: Any) -> PoolInfo:
        self.calls.append(("pool", {"source": source, **arguments}))
        return pool_of(source, parked=("p1", "p2"), lost=("p3",))

    def pool_get(self, source: str) -> PoolInfo:
        self._did("pool_get", source)
        return pool_of(source, snapshot=None, why=f"{source} is running", stale=("p0",))

    def pools(self) -> Sequence[PoolInfo]:
        return self.all_pools

    def list(self) -> list[InstanceInfo]:
        forked = instance("db", State.FAILED, failure=Failure.VMM_LOST, lineage=(_ancestor("web"),))
        return [instance("web"), forked]

    def get(self, name: str) -> InstanceInfo:
        self._did("get", name)
        return instance(name, snapshot=snapshot("s1", "golden"))

    def du(self) -> Sequence[Use]:
        return [Use(name="web", kind="instance", allocated_bytes=1536, exclusive_bytes=None, apparent_bytes=2048)]

    def snapshots(self) -> Sequence[SnapshotInfo]:
        return [snapshot("s1", "golden")]

    def snapshot_create(self, name: str, called: str | None) -> SnapshotInfo:
        self._did("snapshot_create", name, called=called)
        return snapshot("s1", called or "web-1")

    def snapshot_get(self, name: str) -> SnapshotInfo:
        self.calls.append(("snapshot_get", {"name": name}))
        return snapshot("s1", name)

    def snapshot_check(self, names: Sequence[str]) -> Sequence[SnapshotCheck]:
        self.calls.append(("snapshot_check", {"names": tuple(names)}))
        whole = SnapshotCheck(
            id="s1", names=(), instance_name="web", whole=True, damage=(), read_bytes=1536, duration_s=0.1
        )
        damage = SnapshotDamage(file="manifest.json", text="It is damaged.")
        lost = msgspec.structs.replace(
            whole,
            id="s2",
            instance_name=None,
            whole=False,
            damage=(damage,),
            read_bytes=0,
            mend="Remove it: ramet rm db",
        )
        return [whole, lost]

    def snapshot_remove(self, name: str) -> None:
        self.calls.append(("snapshot_remove", {"name": name}))

    def image_build(self, name: str) -> Image:
        self.calls.append(("image_build", {"name": name}))
        return IMAGE

    def image_list(self) -> Sequence[tuple[Image, tuple[str, ...]]]:
        return [(IMAGE, ("micro",))]

    def image_remove(self, name: str) -> None:
        self.calls.append(("image_remove", {"name": name}))

    def doctor(self) -> Sequence[Capability]:
        return [
            Capability(name="qemu", available=True, why="7.2.22", meaning="runs guests"),
            Capability(
                name="kvm", available=False, why="no vmx or svm", meaning="TCG it is", mend="use other hardware"
            ),
        ]

    def check_store(self, *, repair: bool) -> StoreReport:
        strange = Problem(where="/store/tmp/x", text="It is not ours.", mend="Move it elsewhere.")
        loose = Problem(
            where="instance 1", text="It is 0755.", mend="Its mode is set.", can_be_mended=True, mended=repair
        )
        return StoreReport(instances=2, snapshots=1, vmms=0, problems=(*[strange] * self.strange, loose), busy=())

    def logs(self, name: str) -> dict[str, Path]:
        self._did("logs", name)
        return {"console": self.log_path, "vmm": self.log_path.with_suffix(".vmm")}


def _ancestor(name: str) -> Ancestor:
    return Ancestor(instance_id=f"id-{name}", name=name, snapshot_id=None)


def install(monkeypatch: pytest.MonkeyPatch, host: FakeHost | None = None) -> FakeHost:
    """Let the command line work with a FakeHost."""
    fake = host or FakeHost()

    def make_host(_home: Path | None, _say: Callable[[str], None]) -> FakeHost:
        return fake

    monkeypatch.setattr(context, "make_host", make_host)
    return fake
