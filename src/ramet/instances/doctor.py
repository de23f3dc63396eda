"""doctor: what this host can do, why, what that means for the user, and the command that mends it. Probed, never guessed."""

from __future__ import annotations

import os
import shutil

from ramet import config, process
from ramet.errors import RametError
from ramet.guests import image as images
from ramet.hypervisors import confinement, kvm
from ramet.hypervisors.firecracker import driver as firecracker
from ramet.hypervisors.qemu import driver as qemu
from ramet.instances.choice import choose, program_of
from ramet.linux import memory, soft_dirty
from ramet.linux.pagemap import has_pagemap_scan
from ramet.model import MIB, Accelerator, Capability
from ramet.paths import StorePaths
from ramet.store.derive import probe_reflink

ROOM_MIN_BYTES = 2048 * MIB


def examine(paths: StorePaths) -> list[Capability]:
    """Every capability, most important first."""
    return [
        _qemu(),
        _firecracker(),
        _image(paths),
        _kvm(),
        _reflink(paths),
        _pagemap(),
        _soft_dirty(),
        _ptrace(),
        _confinement(),
        _room(paths),
    ]


def _qemu() -> Capability:
    try:
        path = qemu.program()
        found = f"{path}, {qemu.version(path)}"
    except RametError as err:
        return Capability(
            name="QEMU",
            available=False,
            why=err.message,
            meaning="VMs run in Firecracker alone, where that runs",
            mend=f"apt-get install {qemu.PACKAGE}",
        )
    opened = "opens memory files read-only" if qemu.opens_memory_read_only(path) else "opens memory files for writing"
    return Capability(name="QEMU", available=True, why=f"{found}, {opened}", meaning="VMs run")


def _firecracker() -> Capability:
    try:
        path = firecracker.program()
        found = f"{path}, {'.'.join(map(str, firecracker.version(path)))}"
    except RametError as err:
        return Capability(
            name="Firecracker",
            available=False,
            why=err.message,
            meaning="VMs run in QEMU alone",
            mend=err.hint,
        )
    usable = kvm.problem() is None
    return Capability(
        name="Firecracker",
        available=usable,
        why=found if usable else f"{found}, but it needs KVM",
        meaning="VMs run in it with --hypervisor firecracker" if usable else "VMs run in QEMU alone",
        mend=None if usable else "see KVM",
    )


def _image(paths: StorePaths) -> Capability:
    try:
        image, _ = images.resolve(paths.images, "micro")
    except RametError as err:
        return Capability(
            name="image micro",
            available=False,
            why=err.message,
            meaning="`ramet create` has nothing to boot",
            mend="ramet image build",
        )
    return Capability(
        name="image micro", available=True, why=f"{image.digest}, kernel {image.kernel_version}", meaning="guests boot"
    )


def _kvm() -> Capability:
    problem = kvm.problem()
    if problem is None:
        return Capability(
            name="KVM",
            available=True,
            why="/dev/kvm runs guest code at native speed",
            meaning="guests run natively, in QEMU and in Firecracker",
        )
    return Capability(
        name="KVM",
        available=False,
        why=problem.why,
        meaning="guests run under emulation (QEMU's TCG): everything works, more slowly; Firecracker cannot run",
        mend=problem.mend,
    )


def _reflink(paths: StorePaths) -> Capability:
    try:
        why = probe_reflink(paths.tmp)
    except RametError as err:
        why = err.message
    if why is None:
        return Capability(
            name="reflinks", available=True, why=f"FICLONE works in {paths.home}", meaning="forks share disk"
        )
    return Capability(
        name="reflinks",
        available=False,
        why=f"{why} ({paths.home})",
        meaning="every fork and every later sleep copies the memory file",
        mend="keep RAMET_HOME on XFS or btrfs",
    )


def _pagemap() -> Capability:
    if has_pagemap_scan():
        return Capability(
            name="PAGEMAP_SCAN", available=True, why="the kernel has it", meaning="dirty pages are found quickly"
        )
    return Capability(
        name="PAGEMAP_SCAN",
        available=False,
        why=f"kernel {os.uname().release} lacks it (new in 6.7)",
        meaning="dirty pages are found by reading the page map: right, and 8 bytes a page slower",
    )


def _soft_dirty() -> Capability:
    if soft_dirty.is_there():
        return Capability(
            name="soft-dirty bits",
            available=True,
            why="the kernel has them",
            meaning="a running guest is copied before it is paused for a fork or a snapshot: the pause is short (QEMU)",
        )
    return Capability(
        name="soft-dirty bits",
        available=False,
        why=f"kernel {os.uname().release} was built without CONFIG_MEM_SOFT_DIRTY",
        meaning="a fork or a snapshot of a running guest pauses it for all that it wrote since it was started",
        mend="a kernel with it, such as Debian's and Ubuntu's",
    )


def _ptrace() -> Capability:
    scope = int(process.YAMA_PTRACE_SCOPE.read_text()) if process.YAMA_PTRACE_SCOPE.exists() else 0
    if scope >= 3 or (scope == 2 and not process.may_trace()):
        return Capability(
            name="guest memory",
            available=False,
            why=f"ptrace_scope is {scope}",
            meaning="a VM's dirty pages cannot be read: no standby",
            mend="sysctl kernel.yama.ptrace_scope=1 (from 3 only a reboot leads back), or run with CAP_SYS_PTRACE",
        )
    return Capability(
        name="guest memory", available=True, why=f"ptrace_scope is {scope}", meaning="dirty pages can be read"
    )


def _confinement() -> Capability:
    """What is not enforced is said here, so that nobody takes it for more than it is."""
    program, by_kvm = _what_would_run()
    why_not = confinement.why_not()
    weaknesses = confinement.weaknesses(program, kvm=by_kvm)
    weak = f"a VMM that was taken over could still {'; '.join(weaknesses)}" if weaknesses else ""
    if why_not is None:
        return Capability(
            name="confinement",
            available=True,
            why=f"{confinement.means(program, kvm=by_kvm)}; {_memory_of_a_vmm()}",
            meaning=f"a VMM reaches its own files alone{f'; weak: {weak}' if weak else ''}",
        )
    return Capability(
        name="confinement",
        available=False,
        why=f"{why_not}; {confinement.means(program, kvm=by_kvm)}" if config.confinement_wanted() else why_not,
        meaning=weak,
        mend="Linux 5.13 or newer with landlock in the lsm= list of its command line; 6.12 enforces most"
        if config.confinement_wanted()
        else "unset RAMET_CONFINEMENT",
    )


def _memory_of_a_vmm() -> str:
    """A VMM stays in the control group of the command that starts it: docs/security.md says how to give it one."""
    limit = memory.limit_bytes()
    return (
        f"at most {limit // MIB} MiB for all in this control group" if limit is not None else "memory without a limit"
    )


def _what_would_run() -> tuple[str, bool]:
    """The VMM's program that a new instance would get, and whether with KVM; any program, where there is none."""
    try:
        chosen = choose(None, None)
    except RametError:
        return "/bin/sh", False
    return program_of(chosen.hypervisor), chosen.accelerator is Accelerator.KVM


def _room(paths: StorePaths) -> Capability:
    free = shutil.disk_usage(paths.home).free
    enough = free >= ROOM_MIN_BYTES
    return Capability(
        name="room on disk",
        available=enough,
        why=f"{free // MIB} MiB free in {paths.home}",
        meaning="enough for a few small VMs" if enough else "a standby may run out of room (it fails cleanly)",
        mend=None if enough else "free some room, or set RAMET_HOME to a larger file system",
    )
