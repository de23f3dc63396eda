"""From the request to wake a guest to its first command answered: Ramet, the raw mechanism, and peers that save and restore."""

from __future__ import annotations

from ramet.bench import floor, libvirt, peers
from ramet.bench.results import Figure, Role, Row, Target, ratio
from ramet.bench.samples import Sample, Side, alternate, watch
from ramet.bench.source import Source
from ramet.bench.work import Benchmark, Work
from ramet.model import Hypervisor

RAMET, FLOOR, FLOOR_OWN, STREAM, LIBVIRT = "ramet", "floor", "floor-own", "stream", "libvirt"


def measure(work: Work) -> list[Figure]:
    """Wake a sleeping guest again and again; leaves it asleep."""
    source = work.sleeper()
    work.say("restore: one after the other")
    has_clone = source.place.reflinks
    reference = FLOOR_OWN if work.hypervisor is Hypervisor.FIRECRACKER and has_clone else FLOOR
    sides: list[Side] = [lambda: _ramet(source), lambda: _floor(source)]
    if has_clone:
        sides.append(lambda: {FLOOR_OWN: _total(source, own_memory=True)})
    if peers.STREAM in work.peers:
        streamed = source.streamed()
        sides.append(lambda: {STREAM: floor.answer_command(streamed, source.place.scratch)["total"]})
    found = alternate(sides, rounds=work.plan.rounds)
    rows = [
        Row(id=RAMET, label="Ramet: restore, exec true", values=found[RAMET], against=reference),
        Row(id="ramet-restore", part=True, label="restore", values=found["ramet-restore"]),
        Row(id="ramet-exec", part=True, label="exec true", values=found["ramet-exec"]),
        Row(id=FLOOR, label="floor: the VMM by hand, thaw, exec true", values=found[FLOOR], role=Role.FLOOR),
        *(
            Row(id=f"floor-{step}", part=True, label=f"{step}", values=found[step], role=Role.FLOOR)
            for step in floor.STEPS
        ),
    ]
    if has_clone:
        label = "floor, on a clone of the memory that nobody has read"
        rows.append(Row(id=FLOOR_OWN, label=label, values=found[FLOOR_OWN], role=Role.FLOOR))
    notes = ["Ramet's guest has a new identity and a durable record by then; the floor's has neither."]
    if peers.STREAM in work.peers:
        label = "QEMU's migration stream by hand, exec true"
        rows.append(Row(id=STREAM, label=label, values=found[STREAM], role=Role.PEER, against=RAMET))
    if peers.LIBVIRT in work.peers:
        work.say("restore: libvirt")
        with work.libvirt_guest() as guest:
            guest.save()
            again = alternate([lambda: {LIBVIRT: guest.restore()}], rounds=work.plan.slow_rounds)
        label = "libvirt: virsh restore, a command on the console"
        rows.append(Row(id=LIBVIRT, label=label, values=again[LIBVIRT], role=Role.PEER, against=RAMET))
        notes.append(libvirt.NOTE)
    limit = Target(text="restore, against the floor,", limit=1.25, measured=ratio(rows, RAMET, reference))
    return [
        Figure(
            id="restore",
            title="restore to the first command answered",
            setting=source.setting,
            rows=rows,
            targets=[limit],
            notes=notes,
        )
    ]


def _ramet(source: Source) -> Sample:
    clock = watch()
    source.host.restore(source.name)
    restored = clock.lap()
    source.run("true")
    found = {RAMET: clock.total(), "ramet-restore": restored, "ramet-exec": clock.lap()}
    source.host.standby(source.name)
    return found


def _floor(source: Source) -> Sample:
    found = floor.answer_command(source.asleep(own_memory=False), source.place.scratch)
    return {FLOOR: found["total"], **{step: found[step] for step in floor.STEPS}}


def _total(source: Source, *, own_memory: bool) -> float:
    return floor.answer_command(source.asleep(own_memory=own_memory), source.place.scratch)["total"]


BENCHMARK = Benchmark(name="restore", summary="waking a sleeping guest to its first command answered", measure=measure)
