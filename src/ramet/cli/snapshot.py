"""ramet snapshot create, ls, show, check, rm"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from ramet.cli import completion, output, stale
from ramet.cli.context import App, verb
from ramet.cli.several import each
from ramet.cli.show import snapshot_fields

if TYPE_CHECKING:
    from ramet.model import SnapshotCheck

DAMAGED_STATUS = 1
NONE = "No snapshots. `ramet standby INSTANCE` takes one, and so does `ramet snapshot create INSTANCE NAME`."


@click.group("snapshot")
def snapshot() -> None:
    """Take, list, show, check and delete snapshots."""


@verb("create", examples=["ramet snapshot create web", "ramet snapshot create web golden"])
@click.argument("instance", shell_complete=completion.instances)
@click.argument("name", required=False)
def create(app: App, instance: str, name: str | None) -> None:
    """Take a named snapshot of an instance, which runs (or sleeps) on.

    A running instance is paused for the capture and runs on, whatever happens. The snapshot is never written again;
    forks are made from it with `ramet fork snapshot:NAME`.
    """
    host = app.host()
    began = time.monotonic()
    with app.working(f"Capturing {instance}"):
        taken = host.snapshot_create(instance, name)
    if app.json:
        output.json(taken)
        return
    took = output.duration(time.monotonic() - began)
    called = ", ".join(taken.names)
    output.line(f"{called}: {taken.id} ({taken.kind}, {output.size(taken.written_bytes)} written, {took})")


@verb("ls", examples=["ramet snapshot ls"])
@click.option("-q", "--quiet", is_flag=True, help="Only ids, one a line.")
def ls(app: App, quiet: bool) -> None:
    """List the snapshots, named or not.

    With --json: an array of what `ramet snapshot show --json` prints.
    """
    found = app.host().snapshots()
    if app.json:
        output.json(found)
    elif quiet:
        for taken in found:
            output.line(taken.id)
    else:
        output.table(
            ("NAME", "ID", "KIND", "OF", "MEMORY", "WRITTEN", "AGE"),
            [
                (
                    ",".join(taken.names) or "-",
                    taken.id,
                    taken.kind,
                    taken.instance_name,
                    output.memory(taken.memory_mib),
                    output.size(taken.written_bytes),
                    output.age(taken.created_at_unix_s),
                )
                for taken in found
            ],
            right=("MEMORY", "WRITTEN", "AGE"),
            if_empty=NONE,
        )


@verb("show", examples=["ramet snapshot show golden"])
@click.argument("snapshot_name", metavar="SNAPSHOT", shell_complete=completion.snapshots)
def show(app: App, snapshot_name: str) -> None:
    """Show one snapshot, by name or id."""
    found = app.host().snapshot_get(snapshot_name)
    if app.json:
        output.json(found)
    else:
        output.fields(snapshot_fields(found))


@verb(
    "check", examples=["ramet snapshot check", "ramet snapshot check golden --json | jq '.[] | select(.whole | not)'"]
)
@click.argument("snapshots", nargs=-1, metavar="[SNAPSHOT...]", shell_complete=completion.snapshots)
def check(app: App, snapshots: tuple[str, ...]) -> int:
    """Say whether each byte on the disk is what was published.

    Without names: all of them. Memory and disk are compared page by page with the sums that were taken when they were
    published, the device state and the manifest with their SHA-256. Nothing is changed. The status is 0 if all are
    whole and 1 if any is not. With --json: an array of {id names instance_name whole damage[{file text pages}] read_bytes
    duration_s mend}.
    """
    with app.working("Checking"):
        found = app.host().snapshot_check(snapshots)
    if app.json:
        output.json(found)
    else:
        _show_checks(found)
    return 0 if all(one.whole for one in found) else DAMAGED_STATUS


def _show_checks(found: list[SnapshotCheck]) -> None:
    output.table(
        ("NAME", "ID", "OF", "VERDICT", "READ", "TIME"),
        [
            (
                ",".join(one.names) or "-",
                one.id,
                one.instance_name or "-",
                output.coloured("whole" if one.whole else "DAMAGED"),
                output.size(one.read_bytes),
                output.duration(one.duration_s),
            )
            for one in found
        ],
        right=("READ", "TIME"),
        if_empty=NONE,
    )
    for one in found:
        for damage in one.damage:
            output.line(f"{one.names[0] if one.names else one.id}: {damage.file}: {damage.text}")
        if one.mend:
            output.line(f"  {one.mend}")


@verb("rm", examples=["ramet snapshot rm golden"])
@click.argument("snapshots", nargs=-1, required=True, metavar="SNAPSHOT...", shell_complete=completion.snapshots)
def rm(app: App, snapshots: tuple[str, ...]) -> int:
    """Delete snapshots, by name or id.

    By name, the name goes, and the files with it unless something else needs them. By id, a snapshot that is in use is
    refused with the names of its dependents. With --json: an array.
    """
    host = app.host()
    notes: dict[str, tuple[str, str]] = {}
    went_stale = None if app.json else stale.watched(host)

    def action(name: str) -> dict[str, object]:
        host.snapshot_remove(name)
        note = host.last_note
        notes[name] = (note or "deleted", went_stale(name) if went_stale is not None else "")
        return {"name": name, "deleted": True, "note": note}

    def said(name: str, _result: dict[str, object]) -> str:
        note, pools = notes[name]
        return stale.lines(f"{name}: {note}", pools)

    return each(app, snapshots, doing="Deleting", action=action, show=said)


for _command in (create, ls, show, check, rm):
    snapshot.add_command(_command)
