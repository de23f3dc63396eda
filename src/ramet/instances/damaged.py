"""What can still be said of a record or a manifest that cannot be read, and what gets rid of it."""

from __future__ import annotations

from contextlib import suppress

from ramet.errors import CorruptError, FormatVersionError, HostError, NotFoundError
from ramet.instances.context import Store
from ramet.model import InstanceRecord, MemoryPolicy, State
from ramet.store import atomic, names


def instance_label(store: Store, instance_id: str) -> str:
    """``web (1f0c…)``, or the id alone where neither a record nor a name tells more."""
    name = None
    try:
        name = store.read(instance_id).name
    except (CorruptError, HostError, NotFoundError):
        for entry in store.paths.instance_names.iterdir():
            with suppress(CorruptError):  # another's, which is damaged too
                if names.lookup(store.paths.instance_names, entry.name) == instance_id:
                    name = entry.name
    return instance_id if name in (None, instance_id) else f"{name} ({instance_id})"


def users_of(store: Store, snapshot_id: str) -> list[InstanceRecord]:
    """The instances that depend on a snapshot, of those whose records can be read."""
    records, _ = store.readable_records()
    return [one for one in records if snapshot_id in one.references]


def way_out(store: Store, snapshot_id: str, err: CorruptError | HostError | NotFoundError) -> str:
    """What to do about a snapshot whose manifest cannot be read, for that reason: a sentence that names commands."""
    if isinstance(err, FormatVersionError):
        return atomic.OTHER_VERSION
    commands = [_letting_go(one, snapshot_id) for one in users_of(store, snapshot_id)]
    for entry in sorted(store.paths.snapshot_names.iterdir()):
        with suppress(CorruptError):  # it may be its own; what `doctor --store` says of the name comes first
            if names.lookup(store.paths.snapshot_names, entry.name) == snapshot_id:
                commands.append(f"ramet snapshot rm {entry.name}")
    commands = commands or [f"ramet snapshot rm {snapshot_id}"]
    return f"Restore it from a backup, or remove what needs it, with which it goes: {'; '.join(commands)}"


def _letting_go(record: InstanceRecord, snapshot_id: str) -> str:
    """The command after which an instance no longer needs a snapshot that cannot be loaded, and has lost nothing else."""
    if record.state is State.PARKED:
        return f"ramet rm {record.name}"
    if record.vmm is not None:
        stop = f"ramet stop {record.name}"
        is_its_source = snapshot_id in [one.snapshot_id for one in record.lineage[-1:]]
        shares = record.memory_policy is MemoryPolicy.SHARE and is_its_source
        # A sleep reads no manifest of what is mapped.
        return f"ramet standby {record.name} (its memory is kept; if that fails: {stop})" if shares else stop
    return f"ramet {'start' if record.state is State.FAILED else 'rm'} {record.name}"
