"""Structure sizes and ioctl numbers, against the kernel's own headers and against literals."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ramet.linux import extents, ioctl, ofdlock, pagemap, reflink
from tests.capabilities import requires

C_PROGRAM = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <linux/fs.h>
#include <linux/fiemap.h>
#include <sys/ioctl.h>
#ifndef PAGEMAP_SCAN /* Linux 6.7; copied here for older headers */
struct page_region { __u64 start, end, categories; };
struct pm_scan_arg { __u64 size, flags, start, end, walk_end, vec, vec_len, max_pages,
                     category_inverted, category_mask, category_anyof_mask, return_mask; };
#define PAGEMAP_SCAN _IOWR('f', 16, struct pm_scan_arg)
#endif
#define SHOW(value) printf(#value " %lu\n", (unsigned long)(value))
int main(void)
{
    SHOW(sizeof(struct pm_scan_arg));
    SHOW(offsetof(struct pm_scan_arg, walk_end));
    SHOW(sizeof(struct page_region));
    SHOW(sizeof(struct fiemap));
    SHOW(sizeof(struct fiemap_extent));
    SHOW(offsetof(struct fiemap_extent, fe_flags));
    SHOW(sizeof(struct fsxattr));
    SHOW(offsetof(struct fsxattr, fsx_cowextsize));
    SHOW(sizeof(struct flock));
    SHOW(offsetof(struct flock, l_start));
    SHOW(offsetof(struct flock, l_pid));
    SHOW(PAGEMAP_SCAN);
    SHOW(FICLONE);
    SHOW(FS_IOC_FIEMAP);
    SHOW(FS_IOC_FSGETXATTR);
    SHOW(FS_IOC_FSSETXATTR);
    SHOW(FS_XFLAG_COWEXTSIZE);
    SHOW(FIEMAP_FLAG_SYNC);
    SHOW(FIEMAP_EXTENT_LAST);
    SHOW(FIEMAP_EXTENT_SHARED);
    SHOW(F_OFD_SETLK);
    return 0;
}
"""
OURS = {
    "sizeof(struct pm_scan_arg)": pagemap.PM_SCAN_ARG.size,
    "offsetof(struct pm_scan_arg, walk_end)": 4 * 8,
    "sizeof(struct page_region)": pagemap.PAGE_REGION.size,
    "sizeof(struct fiemap)": extents.FIEMAP_HEADER.size,
    "sizeof(struct fiemap_extent)": extents.FIEMAP_EXTENT.size,
    "offsetof(struct fiemap_extent, fe_flags)": extents.FIEMAP_EXTENT.size - 12 - 4,
    "sizeof(struct fsxattr)": reflink.FSXATTR.size,
    "offsetof(struct fsxattr, fsx_cowextsize)": 4 * 4,
    "sizeof(struct flock)": ofdlock.FLOCK.size,
    "offsetof(struct flock, l_start)": 8,
    "offsetof(struct flock, l_pid)": 24,
    "PAGEMAP_SCAN": pagemap.PAGEMAP_SCAN,
    "FICLONE": reflink.FICLONE,
    "FS_IOC_FIEMAP": extents.FS_IOC_FIEMAP,
    "FS_IOC_FSGETXATTR": reflink.FS_IOC_FSGETXATTR,
    "FS_IOC_FSSETXATTR": reflink.FS_IOC_FSSETXATTR,
    "FS_XFLAG_COWEXTSIZE": reflink.FS_XFLAG_COWEXTSIZE,
    "FIEMAP_FLAG_SYNC": extents.FIEMAP_FLAG_SYNC,
    "FIEMAP_EXTENT_LAST": extents.FIEMAP_EXTENT_LAST,
    "FIEMAP_EXTENT_SHARED": extents.FIEMAP_EXTENT_SHARED,
    "F_OFD_SETLK": ofdlock.F_OFD_SETLK,
}


@requires("gcc")
def test_everything_is_as_in_the_kernel_headers(tmp_path: Path) -> None:
    source = tmp_path / "show.c"
    source.write_text(C_PROGRAM)
    subprocess.run(["gcc", "-o", tmp_path / "show", source], check=True)
    printed = subprocess.run([tmp_path / "show"], check=True, capture_output=True, text=True).stdout
    kernel = {name: int(value) for name, _, value in (line.rpartition(" ") for line in printed.splitlines())}
    assert kernel == OURS


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("PAGEMAP_SCAN", 0xC0606610),
        ("FICLONE", 0x40049409),
        ("FS_IOC_FIEMAP", 0xC020660B),
        ("FS_IOC_FSGETXATTR", 0x801C581F),
        ("FS_IOC_FSSETXATTR", 0x401C5820),
    ],
)
def test_ioctl_numbers(name: str, number: int) -> None:
    assert OURS[name] == number


def test_number_builders_put_direction_size_kind_and_number_where_the_kernel_does() -> None:
    assert ioctl.ior(0x12, 0x34, 0x56) == 0x80561234
    assert ioctl.iow(0x12, 0x34, 0x56) == 0x40561234
    assert ioctl.iowr(0x12, 0x34, 0x56) == 0xC0561234
