"""From the request to the first command answered inside the guest: Ramet, the raw mechanism, the migration stream."""

from __future__ import annotations

from pathlib import Path

from bench import floor
from bench.floor import Asleep
from bench.measure import Sample, Samples, Side, alternate, watch
from bench.report import Row, Table, Target, ratio
from bench.source import READ_ALL, Source
from bench.stream import disk_of

RAMET = "Ramet: restore, exec true"
FLOOR = "floor: raw QEMU, thaw, exec true"
FLOOR_OWN = "floor, on its own clone of the memory"
FLOOR_PING = "floor, ended by the agent's first reply"
STREAM = "migration stream, exec true"
READ = ", then all filled memory read"
STEPS = ("derive", "start QEMU", "load", "thaw and command")

NOTES = (
    "Ramet's guest has a new identity and a durable record by then; the floor's has neither.",
    "The first command of a guest that just woke under emulation is slow for everybody: its code is translated anew.",
)


def measure(source: Source, *, rounds: int, read_rounds: int) -> Table:
    """Wake a sleeping guest again and again. Leaves it asleep."""
    found = alternate(_sides(source, then=False), rounds=rounds)
    reading = alternate(_sides(source, then=True), rounds=read_rounds)
    rows = _rows(found, reading)
    return Table(
        title="restore to the first command answered",
        setting=source.setting,
        rows=rows,
        targets=(
            Target(text="restore, against the floor with a command,", limit=1.25, measured=ratio(rows, RAMET, FLOOR)),
            Target(text="the stream, against Ramet,", limit=2.0, measured=ratio(rows, STREAM, RAMET), at_most=False),
        ),
        notes=NOTES,
    )


def _rows(found: Samples, reading: Samples) -> list[Row]:
    totals = [Row(label=label, values=found[label], against=FLOOR) for label in found if label.startswith("floor")]
    steps = [Row(label=f"  floor: {step}", values=found[f"  {step}"]) for step in STEPS]
    return [
        Row(label=RAMET, values=found[RAMET], against=FLOOR),
        Row(label="  restore", values=found["  restore"]),
        Row(label="  exec true", values=found["  exec true"]),
        *totals,
        *steps,
        Row(label=STREAM, values=found[STREAM], against=RAMET),
        Row(label=RAMET + READ, values=reading[RAMET + READ]),
        Row(label=STREAM + READ, values=reading[STREAM + READ], against=RAMET + READ),
    ]


def _sides(source: Source, *, then: bool) -> list[Side]:
    scratch = source.place.scratch
    sides: list[Side] = [lambda: _ramet(source, then=then), lambda: _stream(source, scratch, then=then)]
    if then:
        return sides
    sides += [
        lambda: _floor(source.asleep(), scratch),
        lambda: {FLOOR_PING: floor.answer_ping(source.asleep(), scratch)["total"]},
    ]
    if source.place.reflinks:
        own = FLOOR_OWN
        sides.append(lambda: {own: floor.answer_command(source.asleep(own_memory=True), scratch)["total"]})
    return sides


def _ramet(source: Source, *, then: bool) -> Sample:
    clock = watch()
    source.host.restore(source.name)
    restored = clock.lap()
    source.run("true")
    found = {RAMET: clock.total(), "  restore": restored, "  exec true": clock.lap()}
    if then:
        source.run(*READ_ALL)
        found = {RAMET + READ: clock.total()}
    source.host.standby(source.name)
    return found


def _floor(asleep: Asleep, scratch: Path) -> Sample:
    found = floor.answer_command(asleep, scratch)
    return {FLOOR: found["total"], **{f"  {step}": found[step] for step in STEPS}}


def _stream(source: Source, scratch: Path, *, then: bool) -> Sample:
    asleep = Asleep(hardware=source.hardware(), disk=disk_of(source.stream), state=source.stream, memory=None)
    found = floor.answer_command(asleep, scratch, then=READ_ALL if then else ())
    return {STREAM + READ: found["then"]} if then else {STREAM: found["total"]}
