"""Soft-dirty bits: which pages a process has written since they were cleared (Documentation/admin-guide/mm/soft-dirty.rst).

Clearing write-protects the pages; the next write to each faults, in a guest under KVM too (the kernel tells it through its MMU
notifier), and sets bit 55 of the page's entry in /proc/PID/pagemap. Kernels have them with CONFIG_MEM_SOFT_DIRTY, as Debian's and
Ubuntu's do; ``linux/pagemap.py`` reads them.

What is written past the page tables is not noted, and KSM replaces a page's entry by one without the bit (mm/ksm.c,
replace_page). KVM keeps pages of a guest that runs guests itself mapped for the CPU (kvm_vcpu_map), so ours get no vmx and no svm
(hypervisors/qemu/argv.py).
"""

from __future__ import annotations

import ctypes
import errno
import functools
import logging
import mmap
import os
from pathlib import Path

from ramet.linux.pagemap import ENTRY_BYTES

log = logging.getLogger(__name__)

SOFT_DIRTY = 1 << 55
KSM_RUN = Path("/sys/kernel/mm/ksm/run")
CLEAR = b"4\n"
"""What clear_refs takes for it (proc(5))."""


@functools.cache
def is_there() -> bool:
    """Whether this kernel has them: a page that was just mapped and written has the bit."""
    with mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as page:
        page[0] = 1
        address = _address_of(page)
        try:
            with Path("/proc/self/pagemap").open("rb", buffering=0) as entries:
                entry = os.pread(entries.fileno(), ENTRY_BYTES, address // mmap.PAGESIZE * ENTRY_BYTES)
        except OSError:
            return False  # nobody tells
    return bool(int.from_bytes(entry, "little") & SOFT_DIRTY)


def are_reliable() -> bool:
    """Whether they are there, and nothing takes them away: no KSM runs (Documentation/admin-guide/mm/ksm.rst)."""
    try:
        merging = KSM_RUN.read_bytes().strip()
    except OSError:
        merging = b"0"  # the kernel has no KSM
    return is_there() and merging == b"0"


def clear(pid: int) -> bool:
    """Clear those of a process; False if they are not there, or not ours to clear. What it writes from then on has the bit."""
    if not is_there():
        return False
    try:
        fd = os.open(f"/proc/{pid}/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, CLEAR)
        finally:
            os.close(fd)
    except OSError as err:
        if err.errno not in (errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOENT, errno.ESRCH):
            raise
        log.debug("soft-dirty bits of process %d are not cleared: %s", pid, err)
        return False
    return True


def _address_of(page: mmap.mmap) -> int:
    anchor = ctypes.c_char.from_buffer(page)
    try:
        return ctypes.addressof(anchor)
    finally:
        del anchor
