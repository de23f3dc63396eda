"""Which hypervisor and which accelerator a new instance gets: what was asked for, else what works on this host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ramet.errors import ConfigError, UnsupportedError
from ramet.hypervisors import kvm, users
from ramet.hypervisors.firecracker import driver as firecracker
from ramet.hypervisors.qemu import driver as qemu
from ramet.model import Accelerator, Hypervisor


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What was chosen."""

    hypervisor: Hypervisor
    accelerator: Accelerator
    why: str | None
    """What it is and why, in words; None if all of it was asked for."""


def choose(hypervisor: Hypervisor | None, accelerator: Accelerator | None) -> Choice:
    """QEMU if it is installed, else Firecracker where that can run; KVM where it is usable, which is more than present.

    Raises:
        UnsupportedError: if what was asked for cannot run here, or nothing can.
        ConfigError: for Firecracker without KVM.
    """
    if hypervisor is Hypervisor.FIRECRACKER:
        return _firecracker(accelerator)
    why_no_qemu = _why_not(qemu.program)
    if hypervisor is None and accelerator is not Accelerator.TCG and why_no_qemu is not None:
        return _instead_of_qemu(why_no_qemu)
    if accelerator is Accelerator.KVM:
        kvm.require_usable(otherwise="Use --accelerator tcg, which needs no KVM.")
    why_no_kvm = kvm.why_not_usable()
    chosen = accelerator or (Accelerator.KVM if why_no_kvm is None else Accelerator.TCG)
    why = f"QEMU without KVM, slower: {why_no_kvm}" if why_no_kvm else "QEMU with KVM, which works here"
    return Choice(hypervisor=Hypervisor.QEMU, accelerator=chosen, why=None if accelerator else why)


def _firecracker(accelerator: Accelerator | None) -> Choice:
    if accelerator is Accelerator.TCG:
        raise ConfigError("Firecracker has no emulation: it needs KVM.", hint="Use --hypervisor qemu.")
    firecracker.version(firecracker.program())
    kvm.require_usable(otherwise="Firecracker needs KVM. With --hypervisor qemu, guests run without it.")
    return Choice(hypervisor=Hypervisor.FIRECRACKER, accelerator=Accelerator.KVM, why=None)


def _instead_of_qemu(why_no_qemu: str) -> Choice:
    why_no_firecracker = _why_not(lambda: firecracker.version(firecracker.program()))
    why_not = why_no_firecracker or kvm.why_not_usable()
    if why_not is not None:
        what = "" if why_no_firecracker else "Firecracker needs KVM, and "
        raise UnsupportedError(
            f"No hypervisor works here. {why_no_qemu} {what}{why_not.rstrip('.')}.",
            capability="qemu",
            why=why_no_qemu,
            hint=f"Install QEMU: apt-get install {qemu.PACKAGE}. `ramet doctor` says more.",
        )
    return Choice(
        hypervisor=Hypervisor.FIRECRACKER,
        accelerator=Accelerator.KVM,
        why="Firecracker: KVM works here, and QEMU is not installed",
    )


def _why_not(find: Callable[[], object]) -> str | None:
    try:
        find()
    except UnsupportedError as err:
        return err.message
    return None


def program_of(hypervisor: Hypervisor) -> str:
    """The path of its program.

    Raises:
        UnsupportedError: if it is not installed.
    """
    return qemu.program() if hypervisor is Hypervisor.QEMU else firecracker.program()


def why_no_vmm_users(hypervisor: Hypervisor) -> str | None:
    """None if each VMM of a hypervisor runs as a user of its own on this host, else why not.

    Raises:
        UnsupportedError: if the hypervisor is not installed.
    """
    needs_kvm = hypervisor is Hypervisor.FIRECRACKER or kvm.why_not_usable() is None
    return users.why_no_users(program_of(hypervisor), kvm=needs_kvm)
