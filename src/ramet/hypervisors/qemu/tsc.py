"""The frequency of the host's time stamp counter.

Under TCG a guest's TSC is the host's, and a 6.1 guest on ``microvm`` measures it against the PIT in a race that it loses on a
busy host; it then hangs, because ACPI's reduced hardware leaves it no second reference (tried: some boots of a bzImage, every
boot of an ELF). ``tsc_early_khz=`` takes the answer from us instead.

``tsc=reliable`` (admin-guide/kernel-parameters) keeps that kernel from comparing the TSC with its jiffies, of which a busy host
makes it miss some: it would take the TSC for unstable then, keep time by its ticks, and never stop them. Such a guest, with
nothing to do, takes 40 to 50 ms of a CPU's second (measured), and 6 ms otherwise; and its clock loses time.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import time

RDTSC = bytes((0x0F, 0x31, 0x48, 0xC1, 0xE2, 0x20, 0x48, 0x09, 0xD0, 0xC3))
"""rdtsc; shl rdx, 32; or rax, rdx; ret."""
SAMPLE_S = 0.03
TRIES = 5


@functools.cache
def host_tsc_khz() -> int:
    """The TSC's frequency in kHz, measured once per process against CLOCK_MONOTONIC_RAW in 30 ms, to about 20 ppm."""
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
        page.write(RDTSC)
        anchor = ctypes.c_char.from_buffer(page)
        try:
            rdtsc = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(anchor))
            return _measure(rdtsc)
        finally:
            del anchor


def _measure(rdtsc: ctypes._CFunctionType) -> int:
    start_tsc, start_ns = _read_both(rdtsc)
    end = time.monotonic() + SAMPLE_S
    while time.monotonic() < end:
        pass  # awake: a sleep would let the clock of an idle core settle, and it is 30 ms
    end_tsc, end_ns = _read_both(rdtsc)
    return round((end_tsc - start_tsc) * 1_000_000 / (end_ns - start_ns))


def _read_both(rdtsc: ctypes._CFunctionType) -> tuple[int, int]:
    """TSC and clock as close together as a few tries get them: a preemption in between shows as a wide bracket."""
    best: tuple[int, int, int] | None = None
    for _ in range(TRIES):
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        tsc = rdtsc()
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        if best is None or after - before < best[0]:
            best = (after - before, tsc, (before + after) // 2)
    assert best is not None
    return best[1], best[2]
