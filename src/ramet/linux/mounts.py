"""Which file system a path is on (/proc/self/mountinfo, proc(5))."""

from __future__ import annotations

from pathlib import Path


def file_system_of(path: Path) -> str:
    """The type of the file system that holds ``path``, such as ``xfs``: that of the longest mount point above it."""
    resolved = path.resolve()
    best, kind = Path("/"), "unknown"
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields, _, rest = line.partition(" - ")
        # Blanks in mount points are written as octal escapes.
        mount = Path(fields.split()[4].encode("utf-8", "surrogateescape").decode("unicode_escape"))
        if resolved.is_relative_to(mount) and len(mount.parts) >= len(best.parts):
            best, kind = mount, rest.split()[0]
    return kind
