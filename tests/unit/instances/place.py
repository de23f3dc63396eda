"""A store with one sleeping instance and its snapshot, with no VM behind them."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ramet.instances import birth
from ramet.instances.context import Store
from ramet.instances.store_check import check
from ramet.model import InstanceRecord, Problem, State
from ramet.snapshots.publish import publish
from ramet.store import atomic, names
from tests.unit.snapshots.published import fill, record

INSTANCE, OTHER = "1" * 12, "2" * 12


class Place:
    """A store with one sleeping instance, and its snapshot."""

    def __init__(self, home: Path) -> None:
        self.store = Store(home)
        self.paths = self.store.paths.instance(INSTANCE)
        work = self.store.paths.tmp / "abcdefabcdef"
        work.mkdir(mode=0o700)
        manifest = msgspec.structs.replace(fill(work), instance_id=INSTANCE)
        self.snapshot = self.store.paths.snapshot(manifest.id)
        publish(work, self.snapshot, manifest)
        self.snapshot_id = manifest.id
        self.paths.dir.mkdir(mode=0o700)
        birth.make_directories(self.paths.dir)
        self.record = record(id=INSTANCE, state=State.STANDBY, snapshot=manifest.id)
        self.change()
        names.claim(self.store.paths.instance_names, "web", INSTANCE, what="instance")

    def change(self, **fields: object) -> None:
        self.record = msgspec.structs.replace(self.record, **fields)
        atomic.write_json(self.paths.record, self.record)

    def make_another(self, name: str) -> InstanceRecord:
        """A second instance, which is stopped."""
        made = record(id=OTHER, name=name, state=State.STOPPED)
        paths = self.store.paths.instance(OTHER)
        paths.dir.mkdir(mode=0o700)
        birth.make_directories(paths.dir)
        atomic.write_json(paths.record, made)
        names.claim(self.store.paths.instance_names, name, OTHER, what="instance")
        return made

    def problems(self, *, repair: bool = False) -> tuple[Problem, ...]:
        return check(self.store, repair=repair).problems
