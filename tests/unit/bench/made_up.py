"""A report that was made up: every kind of row, a plot with two curves, a target of each kind, a peer of each kind."""

from __future__ import annotations

from ramet.bench.results import Curve, Figure, HostFacts, Outcome, Peer, Plot, Report, Role, Row, Target, Unit
from ramet.model import Accelerator, Hypervisor, MemoryPolicy, Method

HOST = HostFacts(
    ramet="0.1.0 (1a2b3c4d5e6f)",
    cpu="A CPU <of sorts>",
    cpus=2,
    memory_mib=8192,
    machine="x86_64",
    load=0.25,
    kernel="6.18.0",
    python="3.11.7",
    hypervisor=Hypervisor.QEMU,
    vmm="QEMU 7.2",
    accelerator=Accelerator.TCG,
    file_system="xfs",
    copy_method=Method.REFLINK,
    memory_policy=MemoryPolicy.CLONE,
    guest_memory_mib=256,
    guest_filled_mib=104,
    image="micro 0123456789ab",
    date="2026-01-01 00:00:00 +0000",
)
PEERS = (
    Peer(name="cp --sparse=always", version="cp (GNU coreutils) 9.1", why_absent=None, mend=None),
    Peer(
        name="libvirt save and restore",
        version=None,
        why_absent="virsh was not found in PATH",
        mend="Install it: apt-get install x",
    ),
)


def report() -> Report:
    rows = (
        Row(id="ramet", label="Ramet: fork, wake, exec true", values=[0.3, 0.2, 0.4], against="floor"),
        Row(id="ramet-fork", label="fork and wake", part=True, values=[0.2, 0.1, 0.3]),
        Row(id="floor", label="floor: the VMM by hand", values=[0.2, 0.15, 0.25], role=Role.FLOOR),
        Row(id="cp", label="cp of its files", values=[0.01], role=Role.PEER, against="ramet"),
        Row(id="disk", label="its own disk", values=[0.0, 1 << 20], unit=Unit.BYTES),
        Row(id="nothing", label="nothing at all", values=[0.0], unit=Unit.COUNT),
    )
    figure = Figure(
        id="fork",
        title="one fork request to its first command answered",
        setting="256 MiB guest",
        rows=rows,
        targets=(
            Target(text="a fork, against the floor,", limit=1.25, measured=1.5),
            Target(text="the peer, against Ramet,", limit=2, measured=3, at_most=False),
        ),
        plots=(
            Plot(
                title="By size",
                x="MiB",
                y="s",
                curves=(
                    Curve(label="fork", points=((256, 0.2), (4096, 0.25))),
                    Curve(label="the peer", points=((256, 0.5), (4096, 5.0)), role=Role.PEER),
                ),
            ),
        ),
        notes=("A note with <angles>.",),
    )
    return Report(
        host=HOST,
        plan="quick",
        peers=PEERS,
        outcomes=(
            Outcome(name="fork", summary="one fork", seconds=3.0, figures=(figure,)),
            Outcome(name="scatter", summary="sleeps", seconds=0.1, skipped="Without reflinks nothing is scattered."),
        ),
        seconds=12.5,
    )
