"""Reflinks: FICLONE, and XFS's hint for the size of copy-on-write extents."""

from __future__ import annotations

import fcntl
import struct

from ramet.linux.ioctl import ior, iow

FICLONE = iow(0x94, 9, 4)
"""_IOW(0x94, 9, int), <linux/fs.h>."""
FSXATTR = struct.Struct("=IIIII8x")
"""struct fsxattr: xflags, extsize, nextents, projid, cowextsize."""
FS_IOC_FSGETXATTR = ior(ord("X"), 31, FSXATTR.size)
FS_IOC_FSSETXATTR = iow(ord("X"), 32, FSXATTR.size)
FS_XFLAG_COWEXTSIZE = 0x00010000


def ficlone(dst_fd: int, src_fd: int) -> None:
    """Let ``dst_fd`` share all extents of ``src_fd`` (ioctl_ficlone(2)); dirty pages of the source are written back first."""
    fcntl.ioctl(dst_fd, FICLONE, src_fd)


def set_cow_extent_size(fd: int, size_bytes: int) -> None:
    """Set the copy-on-write extent size hint (XFS; its default of 128 KiB makes scattered pages take 32 times their size)."""
    buffer = bytearray(FSXATTR.size)
    fcntl.ioctl(fd, FS_IOC_FSGETXATTR, buffer, True)
    xflags, extsize, nextents, projid, _ = FSXATTR.unpack(buffer)
    wanted = FSXATTR.pack(xflags | FS_XFLAG_COWEXTSIZE, extsize, nextents, projid, size_bytes)
    fcntl.ioctl(fd, FS_IOC_FSSETXATTR, bytearray(wanted), True)


def get_cow_extent_size(fd: int) -> int:
    """The hint, in bytes; 0 for none."""
    buffer = bytearray(FSXATTR.size)
    fcntl.ioctl(fd, FS_IOC_FSGETXATTR, buffer, True)
    return int(FSXATTR.unpack(buffer)[4])
