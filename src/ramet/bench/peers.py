"""Who Ramet is compared with: who is here, in which version, and why others are not."""

from __future__ import annotations

from ramet import helpers
from ramet.bench import libvirt
from ramet.bench.place import Place
from ramet.bench.results import Peer
from ramet.errors import UnsupportedError
from ramet.hypervisors.qemu import driver as qemu
from ramet.model import Hypervisor

STREAM, LIBVIRT = "QEMU migration stream", "libvirt save and restore"
REFLINK, SPARSE = "cp --reflink=always", "cp --sparse=always"
NOT_ASKED = "not asked for"


def look(place: Place, hypervisor: Hypervisor, *, wanted: bool) -> list[Peer]:
    """Every peer, with its version or why it is absent."""
    if not wanted:
        names = (STREAM, LIBVIRT, REFLINK, SPARSE)
        return [Peer(name=name, version=None, why_absent=NOT_ASKED, mend="ramet bench --against") for name in names]
    return [_stream(hypervisor), _libvirt(hypervisor), *_cp(place)]


def _stream(hypervisor: Hypervisor) -> Peer:
    if hypervisor is not Hypervisor.QEMU:
        return Peer(
            name=STREAM, version=None, why_absent="the guests are not QEMU's", mend="ramet bench --hypervisor qemu"
        )
    return Peer(name=STREAM, version=qemu.version(qemu.program()), why_absent=None, mend=None)


def _libvirt(hypervisor: Hypervisor) -> Peer:
    if hypervisor is not Hypervisor.QEMU:
        return Peer(
            name=LIBVIRT, version=None, why_absent="the guests are not QEMU's", mend="ramet bench --hypervisor qemu"
        )
    try:
        return Peer(name=LIBVIRT, version=libvirt.version(), why_absent=None, mend=None)
    except UnsupportedError as err:
        return Peer(name=LIBVIRT, version=None, why_absent=err.why, mend=err.hint)


def _cp(place: Place) -> list[Peer]:
    program = helpers.find_program("cp", package="coreutils")
    version = helpers.run([program, "--version"], timeout_s=20).stdout.decode(errors="replace").splitlines()[0]
    reflink = Peer(name=REFLINK, version=version, why_absent=None, mend=None)
    if place.why_no_reflinks is not None:
        why = f"the store's file system has no reflinks ({place.why_no_reflinks})"
        reflink = Peer(name=REFLINK, version=None, why_absent=why, mend="keep RAMET_HOME on XFS or btrfs")
    return [reflink, Peer(name=SPARSE, version=version, why_absent=None, mend=None)]
