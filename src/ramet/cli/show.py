"""ramet show"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ramet.cli import completion, output
from ramet.cli.context import App, verb

if TYPE_CHECKING:
    from ramet.model import InstanceInfo, SnapshotInfo

STALE = "its source is not any more what it descends from; `ramet pool` says why, and fills the pool anew"


@verb("show", examples=["ramet show web", "ramet show web --json | jq .snapshot.memory"])
@click.argument("name", shell_complete=completion.instances)
def show(app: App, name: str) -> None:
    """Show all that is known of one instance.

    That is its state, VMM, lineage and snapshot, the files that hold it, and what its VMM really maps (from /proc).
    """
    info = app.host().get(name)
    if app.json:
        output.json(info)
    else:
        output.fields(_instance_fields(info))


def _instance_fields(info: InstanceInfo) -> list[tuple[str, str]]:
    state = output.coloured(output.instance_state(info))
    detail = info.failure_detail or (STALE if info.stale else None)
    accelerator = f", {info.accelerator}" if info.accelerator else ""
    found = [
        ("name", info.name),
        ("id", info.id),
        ("state", f"{state}: {detail}" if detail else state),
        ("hypervisor", f"{info.hypervisor}{accelerator}"),
        ("pid", str(info.pid or "-")),
        ("memory", output.memory(info.memory_mib)),
        ("cpus", str(info.cpus)),
        ("disk", output.size(info.disk_bytes)),
        ("image", info.image),
        ("created", output.moment(info.created_at_unix_s)),
        ("forked from", " < ".join(ancestor.name for ancestor in reversed(info.lineage)) or "-"),
        ("memory policy", info.memory_policy),
        ("live disk", info.live_disk or "-"),
    ]
    if info.mapped_memory is not None:
        held = "a descriptor of the VMM can write to it" if info.mapped_memory.writable else "nothing can write to it"
        found.append(("mapped memory", f"{info.mapped_memory.path} (inode {info.mapped_memory.ino}; {held})"))
    if info.mapped_snapshot:
        found.append(("maps snapshot", info.mapped_snapshot))
    if info.diff_base:
        found.append(("next diff on", info.diff_base))
    found += [("sockets", info.run_dir), *((f"{log} log", path) for log, path in sorted(info.logs.items()))]
    if info.snapshot is not None:
        found += [(f"snapshot {label}", value) for label, value in snapshot_fields(info.snapshot)]
    return found


def snapshot_fields(snapshot: SnapshotInfo) -> list[tuple[str, str]]:
    """What is known of a snapshot, for people."""
    return [
        ("id", snapshot.id),
        ("names", ", ".join(snapshot.names) or "-"),
        ("kind", snapshot.kind),
        ("method", snapshot.method or "written from nothing"),
        ("written", output.size(snapshot.written_bytes)),
        ("of", snapshot.instance_name),
        ("parent", snapshot.parent or "-"),
        ("taken", output.moment(snapshot.created_at_unix_s)),
        ("dir", snapshot.dir),
        ("used by", "; ".join(snapshot.referenced_by) or "-"),
    ]
