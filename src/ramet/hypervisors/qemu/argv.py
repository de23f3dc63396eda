"""QEMU's command line, as a pure function of what is launched.

The guest-visible part (``hardware_argv``) is the same for a boot and for a restore; its digest is part of every manifest,
so that a device list that changed is refused before launch (H61).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ramet.hypervisors.base import BootFiles, Hardware
from ramet.model import Accelerator
from ramet.paths import AGENT_PORTS

MACHINE = "microvm"
CPU_MODEL = {Accelerator.TCG: "max,erms=off,fsrm=off", Accelerator.KVM: "host,vmx=off,svm=off"}
"""TCG executes ``rep movsb`` byte by byte: without the two flags that recommend it, a guest kernel copies by words. A guest that
runs guests under KVM would have pages written that the kernel does not note (linux/soft_dirty.py).
"""
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sockets:
    """Descriptor numbers of the listening sockets that QEMU inherits."""

    qmp: int
    console: int
    agents: tuple[int, ...]


def escape(path: Path) -> str:
    """A path inside a QEMU option list: a comma is written twice (qemu-options)."""
    return str(path).replace(",", ",,")


def hardware_argv(hardware: Hardware) -> list[str]:
    """The part that the guest can see and that the device state depends on."""
    argv = [
        # ACPI stays on: Debian kernels find virtio-mmio through it, and `pit=off` breaks TSC calibration under TCG.
        *("-M", f"{MACHINE},suppress-vmdesc=on,memory-backend=ram0"),
        *("-accel", hardware.accelerator.value),
        *("-cpu", CPU_MODEL[hardware.accelerator]),
        *("-smp", str(hardware.cpus)),
        *("-m", f"{hardware.memory_mib}M"),
        # Without it, and without a VM description, xen-save-devices-state writes what -incoming can load.
        *("-global", "migration.send-configuration=off"),
        *("-device", "virtio-blk-device,drive=d0"),
        *("-device", f"virtio-serial-device,id=agents,max_ports={AGENT_PORTS + 1}"),
    ]
    for port in range(AGENT_PORTS):
        argv += ["-device", f"virtserialport,bus=agents.0,nr={port + 1},chardev=agent{port},name=ramet.{port}"]
    return argv


def hardware_digest(hardware: Hardware) -> str:
    """Of the guest-visible command line: 16 hexadecimal digits."""
    return hashlib.sha256("\0".join(hardware_argv(hardware)).encode()).hexdigest()[:16]


def build_argv(
    program: str,
    *,
    name: str,
    hardware: Hardware,
    memory: Path,
    disk: Path,
    alive: Path,
    console_log: Path,
    sockets: Sockets,
    boot: BootFiles | None,
    read_only_memory: bool = False,
    tsc_khz: int | None = None,
) -> list[str]:
    """The whole command line. The VMM starts stopped; without ``boot`` it waits for ``migrate-incoming``. All paths are used as
    given.

    ``alive`` is a socket that nobody talks to: QEMU unlinks what it has bound when it exits in order (util/qemu-sockets.c,
    socket_listen_cleanup) and leaves it when it is killed. A pid file would tell as much, but its path is resolved from the root.
    ``read_only_memory``: the memory file is opened read-only, and is guest RAM all the same. ``readonly=on`` alone would make a
    ROM of it; QEMU knows ``rom=off`` since 8.2 (e92666b0ba4c, "backends/hostmem-file: Add 'rom' property").
    ``tsc_khz`` tells a booting kernel what it cannot measure, and to rely on it (tsc.py).
    """
    backend = f"size={hardware.memory_mib}M,mem-path={escape(memory)},share=off,merge=off,dump=off"
    if read_only_memory:
        backend += ",readonly=on,rom=off"
    argv = [
        program,
        *("-name", name),
        *("-nodefaults", "-no-user-config", "-no-reboot"),
        *("-display", "none"),
        *("-sandbox", SANDBOX),
        *("-chardev", f"socket,id=alive,path={escape(alive)},server=on,wait=off"),
        *("-object", f"memory-backend-file,id=ram0,{backend}"),
        *("-drive", f"file={escape(disk)},format=raw,if=none,id=d0"),
        *("-chardev", f"socket,id=qmp,fd={sockets.qmp},server=on,wait=off"),
        *("-mon", "chardev=qmp,mode=control"),
        *(
            "-chardev",
            f"socket,id=console,fd={sockets.console},server=on,wait=off,logfile={escape(console_log)},logappend=on",
        ),
        *("-serial", "chardev:console"),
    ]
    for port, fd in enumerate(sockets.agents):
        argv += ["-chardev", f"socket,id=agent{port},fd={fd},server=on,wait=off"]
    argv += hardware_argv(hardware)
    # Of the blocks that are not the backend's, such as the ACPI tables; no part of what a device state depends on.
    argv += ["-machine", "mem-merge=off,dump-guest-core=off"]
    return [*argv, "-S", *(_boot_argv(boot, tsc_khz) if boot else ("-incoming", "defer"))]


def _boot_argv(boot: BootFiles, tsc_khz: int | None) -> list[str]:
    cmdline = boot.cmdline if tsc_khz is None else f"{boot.cmdline} tsc_early_khz={tsc_khz} tsc=reliable"
    return ["-kernel", str(boot.kernel), "-initrd", str(boot.initrd), "-append", cmdline]
