"""Another process's memory, through /proc/PID/mem (proc(5))."""

from __future__ import annotations

import errno
import os

from ramet.linux import whole


def open_memory(pid: int) -> int:
    """A descriptor for reading; the kernel checks the right to trace here, once."""
    return os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)


def read_into(fd: int, address: int, buffer: memoryview) -> None:
    """Fill ``buffer`` from ``address``.

    Raises:
        OSError: EIO where nothing is mapped or the process is gone.
    """
    done = whole.pread(fd, buffer, address)
    if done < len(buffer):
        raise OSError(errno.EIO, f"no memory at {address + done:#x}")
