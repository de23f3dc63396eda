"""fanotify(7): who opens, changes and closes files, by process."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from ramet.linux.libc import LIBC, checked

FAN_MODIFY = 0x2
FAN_CLOSE_WRITE = 0x8
FAN_OPEN = 0x20
FAN_Q_OVERFLOW = 0x4000
FAN_EVENT_ON_CHILD = 0x08000000
FAN_CLOEXEC, FAN_NONBLOCK, FAN_CLASS_NOTIF = 0x1, 0x2, 0x0
FAN_UNLIMITED_QUEUE, FAN_UNLIMITED_MARKS = 0x10, 0x20
FAN_MARK_ADD = 0x1
METADATA = struct.Struct("=IBBHQii")
"""struct fanotify_event_metadata: event_len, vers, reserved, metadata_len, mask, fd, pid."""
METADATA_VERSION = 3
BATCH_BYTES = 64 * METADATA.size
"""Each event brings a descriptor with it; what there are none left for is lost without a word."""

LIBC.fanotify_init.argtypes = [ctypes.c_uint, ctypes.c_uint]
LIBC.fanotify_mark.argtypes = [ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What ``pid`` did (``mask``) to the open file ``fd``, which the receiver closes; -1 if events were lost."""

    mask: int
    fd: int
    pid: int


def create() -> int:
    """A new group, as a descriptor that does not block.

    Raises:
        OSError: EPERM without CAP_SYS_ADMIN (without it no event tells its process), ENOSYS where it is not built in.
    """
    flags = FAN_CLASS_NOTIF | FAN_CLOEXEC | FAN_NONBLOCK | FAN_UNLIMITED_QUEUE | FAN_UNLIMITED_MARKS
    return checked(LIBC.fanotify_init(flags, os.O_RDONLY | os.O_LARGEFILE | os.O_CLOEXEC))


def mark(group: int, path: Path, mask: int) -> None:
    """Let a group have the events in ``mask`` of a file, or of a directory's entries with FAN_EVENT_ON_CHILD.

    Raises:
        OSError: ENODEV, EOPNOTSUPP on file systems that cannot.
    """
    checked(LIBC.fanotify_mark(group, FAN_MARK_ADD, mask, -1, os.fsencode(path.absolute())))


def events(group: int) -> list[Event]:
    """The next events, no more than 64; none if nothing has happened since.

    Raises:
        OSError: EMFILE where there are no descriptors left for them, EPROTO if the kernel speaks another version.
    """
    try:
        data = os.read(group, BATCH_BYTES)
    except BlockingIOError:
        return []
    found = []
    position = 0
    while position < len(data):
        length, version, _, _, mask, fd, pid = METADATA.unpack_from(data, position)
        if version != METADATA_VERSION:
            raise OSError(errno.EPROTO, f"fanotify speaks version {version}")
        found.append(Event(mask=mask, fd=fd, pid=pid))
        position += length
    return found
