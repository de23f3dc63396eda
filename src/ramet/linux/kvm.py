"""A short run of guest code under KVM (Documentation/virt/kvm/api.rst), to see at what speed it runs."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ramet.linux.ioctl import io, ior, iow

KVMIO = 0xAE
KVM_GET_API_VERSION = io(KVMIO, 0x00)
KVM_CREATE_VM = io(KVMIO, 0x01)
KVM_GET_VCPU_MMAP_SIZE = io(KVMIO, 0x04)
KVM_CREATE_VCPU = io(KVMIO, 0x41)
KVM_RUN = io(KVMIO, 0x80)
KVM_USERSPACE_MEMORY_REGION = struct.Struct("=IIQQQ")
"""slot, flags, guest_phys_addr, memory_size, userspace_addr."""
KVM_SET_USER_MEMORY_REGION = iow(KVMIO, 0x46, KVM_USERSPACE_MEMORY_REGION.size)
KVM_REGS = struct.Struct("=18Q")
"""rax rbx rcx rdx rsi rdi rsp rbp r8 to r15, rip, rflags."""
KVM_SET_REGS = iow(KVMIO, 0x82, KVM_REGS.size)
KVM_SREGS_BYTES = 312
KVM_GET_SREGS = ior(KVMIO, 0x83, KVM_SREGS_BYTES)
KVM_SET_SREGS = iow(KVMIO, 0x84, KVM_SREGS_BYTES)
KVM_API_VERSION = 12
KVM_EXIT_HLT = 5
EXIT_REASON_OFFSET = 8
"""Of ``exit_reason`` in struct kvm_run."""
CS_SEGMENT = struct.Struct("=QIH")
"""The beginning of struct kvm_segment, which struct kvm_sregs begins with: base, limit, selector."""
MEMORY_BYTES = 0x2000
ENTRY = 0x1000
LOOP = bytes((0x66, 0x49, 0x75, 0xFC, 0xF4))
"""Real mode: again: dec ecx; jnz again; hlt."""


def time_loop(device: Path, iterations: int, *, runs: int) -> float:
    """Seconds that the quickest of ``runs`` runs of a loop of two instructions took in a guest; natively about a cycle each.

    Raises:
        OSError: if a VM cannot be made, or its code does not end with the halt that it should end with (ENOTRECOVERABLE).
    """
    with _opened(device) as kvm_fd:
        if fcntl.ioctl(kvm_fd, KVM_GET_API_VERSION, 0) != KVM_API_VERSION:
            raise OSError(errno.EPROTO, "unknown KVM API version")
        with (
            _owned(fcntl.ioctl(kvm_fd, KVM_CREATE_VM, 0)) as vm_fd,
            mmap.mmap(-1, MEMORY_BYTES) as memory,
            _owned(fcntl.ioctl(vm_fd, KVM_CREATE_VCPU, 0)) as vcpu_fd,
            mmap.mmap(vcpu_fd, fcntl.ioctl(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0)) as run,
        ):
            memory[ENTRY : ENTRY + len(LOOP)] = LOOP
            _give_memory(vm_fd, memory)
            _enter_real_mode(vcpu_fd)
            return min(_run_once(vcpu_fd, run, iterations) for _ in range(runs))


def _run_once(vcpu_fd: int, run: mmap.mmap, iterations: int) -> float:
    registers = [0] * 18
    registers[2], registers[16], registers[17] = iterations, ENTRY, 2  # rcx, rip, rflags with its fixed bit
    fcntl.ioctl(vcpu_fd, KVM_SET_REGS, KVM_REGS.pack(*registers))
    began = time.perf_counter()
    fcntl.ioctl(vcpu_fd, KVM_RUN, 0)
    took = time.perf_counter() - began
    (reason,) = struct.unpack_from("=I", run, EXIT_REASON_OFFSET)
    if reason != KVM_EXIT_HLT:
        raise OSError(errno.ENOTRECOVERABLE, f"the guest's code ended with exit reason {reason}")
    return took


def _give_memory(vm_fd: int, memory: mmap.mmap) -> None:
    anchor = ctypes.c_char.from_buffer(memory)
    try:
        region = KVM_USERSPACE_MEMORY_REGION.pack(0, 0, 0, MEMORY_BYTES, ctypes.addressof(anchor))
        fcntl.ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, region)
    finally:
        del anchor  # the mapping cannot be closed while it is exported


def _enter_real_mode(vcpu_fd: int) -> None:
    special = bytearray(KVM_SREGS_BYTES)
    fcntl.ioctl(vcpu_fd, KVM_GET_SREGS, special, True)
    _, limit, _ = CS_SEGMENT.unpack_from(special)
    CS_SEGMENT.pack_into(special, 0, 0, limit, 0)
    fcntl.ioctl(vcpu_fd, KVM_SET_SREGS, bytes(special))


@contextmanager
def _opened(device: Path) -> Iterator[int]:
    with _owned(os.open(device, os.O_RDWR | os.O_CLOEXEC)) as fd:
        yield fd


@contextmanager
def _owned(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)
