"""seccomp(2) filters: a thread gives up system calls, for itself and for whatever it starts.

What Landlock does not handle is refused here, whoever the user is: another process's socket cannot be connected to, a file that
is not opened cannot be changed. What is refused answers EPERM. Besides, who has SIGXFSZ ignored keeps it ignored.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import signal
import socket
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ramet.linux.libc import syscall

MACHINE: Final = "x86_64"
SYS_SECCOMP: Final = 317
SECCOMP_SET_MODE_FILTER: Final = 1
SECCOMP_FILTER_FLAG_SPEC_ALLOW: Final = 1 << 2
"""Without it kernels before 5.16 turn a mitigation on that makes a VMM slower (Documentation/admin-guide/hw-vuln/spectre.rst)."""
SECCOMP_RET_ALLOW: Final = 0x7FFF0000
SECCOMP_RET_ERRNO: Final = 0x00050000
AUDIT_ARCH_X86_64: Final = 0xC000003E
X32_SYSCALL_BIT: Final = 0x40000000
BPF_LD_W_ABS, BPF_AND, BPF_JEQ, BPF_JGE, BPF_RET = 0x20, 0x54, 0x15, 0x35, 0x06
NR_OFFSET, ARCH_OFFSET, ARGUMENTS_OFFSET = 0, 4, 16
"""In struct seccomp_data. Of an argument the lower half comes first."""
ACTIONS: Final = Path("/proc/sys/kernel/seccomp/actions_avail")

NEW_NAMESPACES: Final = 0x7E020000
"""CLONE_NEWNS and the other CLONE_NEW… of clone(2)."""
SOCKET_TYPE: Final = 0xF
"""Beside it, the argument has SOCK_CLOEXEC and SOCK_NONBLOCK."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Test:
    """``argument & mask == value``, of the argument's lower half, or of its ``upper`` one."""

    argument: int
    value: int
    mask: int = 0xFFFFFFFF
    upper: bool = False

    def code(self, *, otherwise_skip: int) -> list[bytes]:
        """Instructions that skip some if it is not so."""
        return [
            _instruction(BPF_LD_W_ABS, value=ARGUMENTS_OFFSET + 8 * self.argument + 4 * self.upper),
            _instruction(BPF_AND, value=self.mask),
            _instruction(BPF_JEQ, value=self.value, otherwise_skip=otherwise_skip),
        ]


REFUSED: Final[Mapping[str, int]] = {
    # others' sockets, by path or by abstract name
    "connect": 42,
    # files that are not opened: modes, owners, times, attributes, sizes, names
    "truncate": 76,
    "mkdir": 83,
    "link": 86,
    "symlink": 88,
    "chmod": 90,
    "fchmod": 91,
    "chown": 92,
    "fchown": 93,
    "lchown": 94,
    "utime": 132,
    "mknod": 133,
    "setxattr": 188,
    "lsetxattr": 189,
    "fsetxattr": 190,
    "removexattr": 197,
    "lremovexattr": 198,
    "fremovexattr": 199,
    "utimes": 235,
    "mkdirat": 258,
    "mknodat": 259,
    "fchownat": 260,
    "futimesat": 261,
    "linkat": 265,
    "symlinkat": 266,
    "fchmodat": 268,
    "utimensat": 280,
    "open_by_handle_at": 304,
    "fchmodat2": 452,
    "setxattrat": 463,
    "removexattrat": 466,
    "file_setattr": 469,
    # other processes
    "ptrace": 101,
    "setpriority": 141,
    "ioprio_set": 251,
    "migrate_pages": 256,
    "move_pages": 279,
    "process_vm_readv": 310,
    "process_vm_writev": 311,
    "kcmp": 312,
    "pidfd_send_signal": 424,
    "pidfd_open": 434,
    "pidfd_getfd": 438,
    "process_madvise": 440,
    "process_mrelease": 448,
    # the kernel's keyrings, and its larger surfaces that no VMM needs
    "add_key": 248,
    "request_key": 249,
    "keyctl": 250,
    "perf_event_open": 298,
    "bpf": 321,
    "userfaultfd": 323,
    # its own filters do not see what goes through these rings
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    # files that are in no directory, so that Landlock keeps nobody from executing what was written into them
    "memfd_create": 319,
    "memfd_secret": 447,
    # memory, semaphores and queues that processes share by name
    "shmget": 29,
    "shmat": 30,
    "shmctl": 31,
    "semget": 64,
    "semop": 65,
    "semctl": 66,
    "msgget": 68,
    "msgsnd": 69,
    "msgrcv": 70,
    "msgctl": 71,
    "semtimedop": 220,
    "mq_open": 240,
    # other namespaces and mounts, where they could be asked for without root
    "unshare": 272,
    "setns": 308,
    "mount": 165,
    "umount2": 166,
    "chroot": 161,
    "pivot_root": 155,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "mount_setattr": 442,
}
"""System calls of x86-64, by number (arch/x86/entry/syscalls/syscall_64.tbl)."""
ALLOWED_ONLY_WITH: Final[Mapping[str, tuple[int, Sequence[Test]]]] = {
    "prlimit64": (302, (Test(argument=0, value=0),)),
    "sched_setparam": (142, (Test(argument=0, value=0),)),
    "sched_setscheduler": (144, (Test(argument=0, value=0),)),
    "sched_setaffinity": (203, (Test(argument=0, value=0),)),
    "sched_setattr": (314, (Test(argument=0, value=0),)),
    "clone": (56, (Test(argument=0, mask=NEW_NAMESPACES, value=0),)),
    "socketpair": (53, (Test(argument=1, mask=SOCKET_TYPE, value=socket.SOCK_STREAM),)),
}
"""Number, and what an argument must be, of several tests one at least: nobody's limits and scheduling but its own, no namespaces,
no sockets that send to whom they like.
"""
SOCKET: Final = 41
"""Allowed for unix sockets that are streams: they can be sent to only after connect(2)."""
CLONE3: Final = 435
"""Its flags are in memory, where no filter looks: it is said not to exist, and the C library then uses clone(2)."""
MADVISE: Final = 28
MADV_HUGEPAGE: Final = 14
RT_SIGACTION: Final = 13
"""That of SIGXFSZ is answered with 0, and nothing done: a program that takes a file as large as may be for its own end, as
Firecracker does, is told so by write(2) (EFBIG) instead, if the signal was ignored when it was executed.
"""


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def why_not() -> str | None:
    """None if filters of ours can be set here, else why not."""
    if platform.machine() != MACHINE:
        return f"this machine is {platform.machine()}, and the filter is written for {MACHINE}"
    try:
        return None if "errno" in ACTIONS.read_text().split() else "the kernel's seccomp cannot answer with an errno"
    except OSError as err:
        return f"the kernel has no seccomp filters ({err.strerror})"


def restrict_this_thread(*, but: Collection[str] = (), small_pages_of_bytes: int | None = None) -> None:
    """Refuse all of the above from now on, ``but`` some of ``REFUSED``. The thread must have no_new_privs.

    ``small_pages_of_bytes``: refuse to advise huge pages for a mapping of just that size. Of a file that is so advised, the first
    touch of any page reads 4 MiB (mm/filemap.c, do_sync_mmap_readahead, since Linux 5.18).

    Raises:
        OSError: if the kernel refuses; nothing is restricted then.
    """
    code = assemble(but=but, small_pages_of_bytes=small_pages_of_bytes)
    program = _Program(len(code) // 8, code)
    flags, address = SECCOMP_FILTER_FLAG_SPEC_ALLOW, ctypes.addressof(program)
    syscall(SYS_SECCOMP, SECCOMP_SET_MODE_FILTER, flags, address, what="seccomp")


def assemble(*, but: Collection[str] = (), small_pages_of_bytes: int | None = None) -> bytes:
    """The filter as the kernel takes it: struct sock_filter, one after the other."""
    refuse = _instruction(BPF_RET, value=SECCOMP_RET_ERRNO | errno.EPERM)
    allow = _instruction(BPF_RET, value=SECCOMP_RET_ALLOW)
    code = [
        _instruction(BPF_LD_W_ABS, value=ARCH_OFFSET),
        _instruction(BPF_JEQ, value=AUDIT_ARCH_X86_64, otherwise_skip=0, skip=1),
        refuse,
        _instruction(BPF_LD_W_ABS, value=NR_OFFSET),
        _instruction(BPF_JGE, value=X32_SYSCALL_BIT, otherwise_skip=1),
        refuse,
    ]
    for number in (number for name, number in REFUSED.items() if name not in but):
        code += [_instruction(BPF_JEQ, value=number, otherwise_skip=1), refuse]
    for number, tests in ALLOWED_ONLY_WITH.values():
        check = [one for test in tests for one in (*test.code(otherwise_skip=1), allow)]
        code += [_instruction(BPF_JEQ, value=number, otherwise_skip=len(check) + 1), *check, refuse]
    unix = Test(argument=0, value=socket.AF_UNIX).code(otherwise_skip=4)
    stream = Test(argument=1, mask=SOCKET_TYPE, value=socket.SOCK_STREAM).code(otherwise_skip=1)
    check = [*unix, *stream, allow]
    code += [_instruction(BPF_JEQ, value=SOCKET, otherwise_skip=len(check) + 1), *check, refuse]
    if small_pages_of_bytes is not None:
        upper, lower = divmod(small_pages_of_bytes, 1 << 32)
        check = [
            *Test(argument=2, value=MADV_HUGEPAGE).code(otherwise_skip=7),
            *Test(argument=1, value=upper, upper=True).code(otherwise_skip=4),
            *Test(argument=1, value=lower).code(otherwise_skip=1),
            refuse,
            allow,
        ]
        code += [_instruction(BPF_JEQ, value=MADVISE, otherwise_skip=len(check)), *check]
    absent = _instruction(BPF_RET, value=SECCOMP_RET_ERRNO | errno.ENOSYS)
    code += [_instruction(BPF_JEQ, value=CLONE3, otherwise_skip=1), absent]
    only_asked = Test(argument=1, value=0).code(otherwise_skip=1)
    done = _instruction(BPF_RET, value=SECCOMP_RET_ERRNO)
    check = [*only_asked, allow, done]
    check = [*Test(argument=0, value=signal.SIGXFSZ).code(otherwise_skip=len(check)), *check]
    code += [_instruction(BPF_JEQ, value=RT_SIGACTION, otherwise_skip=len(check)), *check]
    return b"".join([*code, allow])


def _instruction(code: int, *, value: int, skip: int = 0, otherwise_skip: int = 0) -> bytes:
    return struct.pack("=HBBI", code, skip, otherwise_skip, value)
