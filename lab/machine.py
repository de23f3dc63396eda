"""The lab's QEMU: an emulated AMD processor with SVM, the host's files, a disk, and eight ports of the agent.

Nothing of it has a name on the host: sockets are pairs, the disk is a file without a name, and QEMU dies with us.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from lab.image import Image
from ramet import helpers
from ramet.errors import GuestTimeoutError, LaunchError, VmmDiedError, host_errors
from ramet.guests.client import AgentClient

log = logging.getLogger("ramet.lab")
MKFS = {"xfs": ("mkfs.xfs", "-q", "-m", "reflink=1"), "ext4": ("mkfs.ext4", "-q", "-F", "-m", "0")}
MKFS_PACKAGES = {"xfs": "xfsprogs", "ext4": "e2fsprogs"}
DISK_MOUNT = Path("/run/lab/disk")
CMDLINE = "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off rcupdate.rcu_expedited=1 random.trust_cpu=on"
READY_S = 45.0
"""Up in 5 to 7 s, three times that on a busy host."""
BOOTS = 3
"""The emulated machine hangs about once in fifty boots (its kernel tells of RCU stalls); it has run nothing of ours by then."""
LOG_TAIL_BYTES = 3000


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What the lab has; sizes in MiB. ``cpus``: the command's. ``file_system``: of its disk, or None for no disk.

    There is one more CPU, the first, which runs no guest: when any CPU restores its floating-point state, QEMU's
    ``cpu_clear_ignne`` rewrites CPU 0's ``hflags2`` without a lock, and a world switch there loses its bits (seen in 7.2 and
    10.0: guests ended by triple faults, walks of one page table with the other's root). ``init`` keeps the command off it.
    """

    memory_mib: int
    cpus: int
    file_system: str | None
    disk_mib: int


@contextmanager
def lab(qemu: Sequence[str], image: Image, hardware: Hardware) -> Iterator[AgentClient]:
    """A booted lab and a session with its agent, for the block. ``qemu``: the program and its first options.

    Raises:
        LaunchError: with the console's end, if it did not come up.
        VmmDiedError: if it goes down in the block, with the console's end as its hint.
    """
    with ExitStack() as stack:
        for left in reversed(range(BOOTS)):
            try:
                agent, console = stack.enter_context(_booted(qemu, image, hardware))
            except LaunchError as err:
                if left == 0 or not isinstance(err.__cause__, GuestTimeoutError):
                    raise
                log.warning("lab: it hung while it booted; once more")
                continue
            break
        try:
            yield agent
        except VmmDiedError as err:
            raise VmmDiedError("The lab went down while its command ran.", hint=_tail(console)) from err


@contextmanager
def _booted(qemu: Sequence[str], image: Image, hardware: Hardware) -> Iterator[tuple[AgentClient, IO[bytes]]]:
    """One attempt; with what its console writes to."""
    with ExitStack() as stack:
        console = stack.enter_context(tempfile.TemporaryFile(dir="/var/tmp"))  # it has no name
        disk = _disk(stack, hardware) if hardware.file_system else None
        ours, theirs = socket.socketpair()
        stack.callback(theirs.close)
        argv = _argv(qemu, image, hardware, port_fd=theirs.fileno(), disk_fd=disk)
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            pass_fds=[fd for fd in (theirs.fileno(), disk) if fd is not None],
            process_group=0,  # Ctrl-C is for the command, which hears of it from us
        )
        stack.callback(child.wait)
        stack.callback(child.kill)
        theirs.close()
        try:
            agent = stack.enter_context(AgentClient.over(ours, deadline_s=READY_S))
        except (VmmDiedError, GuestTimeoutError) as err:
            raise LaunchError(
                "The lab did not come up.", argv=argv, status=child.poll(), log_tail=_tail(console)
            ) from err
        yield agent, console


def _argv(qemu: Sequence[str], image: Image, hardware: Hardware, *, port_fd: int, disk_fd: int | None) -> list[str]:
    argv = [
        *(helpers.find_program("setpriv", package="util-linux"), "--pdeathsig", "KILL", *qemu),
        *("-name", "ramet-lab", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-M", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "EPYC,+svm,+npt,erms=off,fsrm=off"),
        *("-smp", str(1 + hardware.cpus), "-m", f"{hardware.memory_mib}M"),
        *("-kernel", str(image.kernel), "-initrd", str(image.initrd)),
        *("-append", CMDLINE if disk_fd is None else f"{CMDLINE} lab_disk={hardware.file_system}"),
        *("-serial", "stdio"),
        *("-fsdev", "local,id=host,path=/,security_model=passthrough,readonly=on,multidevs=remap"),
        *("-device", "virtio-9p-pci,fsdev=host,mount_tag=host"),
        *("-device", "virtio-serial-pci,id=agents", "-chardev", f"socket,id=agent,fd={port_fd}"),
        *("-device", "virtserialport,bus=agents.0,nr=1,chardev=agent,name=ramet.0"),
    ]
    if disk_fd is not None:
        argv += ["-drive", f"file=/proc/self/fd/{disk_fd},format=raw,if=none,id=disk,cache=unsafe,discard=unmap"]
        argv += ["-device", "virtio-blk-pci,drive=disk"]
    return argv


def _disk(stack: ExitStack, hardware: Hardware) -> int:
    """A formatted file without a name; sparse."""
    assert hardware.file_system is not None
    with host_errors(f"make a disk of {hardware.disk_mib // 1024} GiB in /var/tmp"):
        fd = os.open("/var/tmp", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        stack.callback(os.close, fd)
        os.ftruncate(fd, hardware.disk_mib * 1024 * 1024)
    program, *options = MKFS[hardware.file_system]
    mkfs = helpers.find_program(program, package=MKFS_PACKAGES[hardware.file_system])
    helpers.run([mkfs, *options, f"/proc/{os.getpid()}/fd/{fd}"], timeout_s=60)
    return fd


def _tail(console: IO[bytes]) -> str:
    with suppress(OSError):
        size = os.fstat(console.fileno()).st_size
        return os.pread(console.fileno(), LOG_TAIL_BYTES, max(size - LOG_TAIL_BYTES, 0)).decode(errors="replace")
    return ""
