"""What this process may do besides what any process may (capabilities(7))."""

from __future__ import annotations

from pathlib import Path

CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_KILL, CAP_SETGID, CAP_SETUID = 0, 1, 3, 5, 6, 7
CAP_SYS_PTRACE, CAP_SYS_NICE = 19, 23
"""By number, as in <linux/capability.h>."""


def in_effect(*numbers: int) -> bool:
    """Whether this process has all of them in effect: root in a container often has not."""
    status = Path("/proc/self/status").read_text()
    effective = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), 16)
    return all(effective >> number & 1 for number in numbers)
