"""Saving a guest whole: a full snapshot, against peers that write its memory out."""

from __future__ import annotations

from ramet.bench import libvirt, peers
from ramet.bench.results import Figure, Role, Row
from ramet.bench.samples import Sample, Side, alternate, watch
from ramet.bench.source import Source
from ramet.bench.work import Benchmark, Work
from ramet.model import SnapshotKind, State

RAMET, STREAM, LIBVIRT = "ramet", "stream", "libvirt"
SNAPSHOT = "bench-full"


def measure(work: Work) -> list[Figure]:
    """Save a guest that has never slept, whole and durably, again and again; it runs on."""
    source = work.source()
    assert source.host.get(source.name).state is State.RUNNING, "it is the first benchmark that has the guest"
    work.say("save: one after the other")
    sides: list[Side] = [lambda: {RAMET: _whole(source)}]
    if peers.STREAM in work.peers:
        sides.append(lambda: {STREAM: source.save_stream()})
    alternate(sides, rounds=1)  # the first to write to a block of a sparse disk is slower: it does not count
    found = alternate(sides, rounds=work.plan.slow_rounds + 1)
    rows = [Row(id=RAMET, label="Ramet: full snapshot", values=found[RAMET])]
    notes = ["All are fsynced. Ramet's has the freeze and thaw of the guest, its disk, sums and a manifest in it."]
    if peers.STREAM in work.peers:
        label = "QEMU: migrate to a file"
        rows.append(Row(id=STREAM, label=label, values=found[STREAM], role=Role.PEER, against=RAMET))
    if peers.LIBVIRT in work.peers:
        work.say("save: libvirt")

        def saved() -> Sample:
            seconds = guest.save()
            guest.restore()
            return {LIBVIRT: seconds}

        with work.libvirt_guest() as guest:
            again = alternate([saved], rounds=work.plan.slow_rounds)
        rows.append(Row(id=LIBVIRT, label="libvirt: virsh save", values=again[LIBVIRT], role=Role.PEER, against=RAMET))
        notes.append(libvirt.NOTE)
    return [Figure(id="save", title="a guest saved whole", setting=source.setting, rows=rows, notes=notes)]


def _whole(source: Source) -> float:
    clock = watch()
    made = source.host.snapshot_create(source.name, SNAPSHOT)
    seconds = clock.total()
    assert made.kind is SnapshotKind.FULL
    source.host.snapshot_remove(SNAPSHOT)
    return seconds


BENCHMARK = Benchmark(name="save", summary="a guest saved whole, and its peers' ways to do that", measure=measure)
