"""A fresh file system on a loop device, for as long as a block or a command runs. Needs root.

    python -m tools.loopfs xfs -- ramet verify        # proves it with reflinks on a host whose disk has none

The command finds an empty ``$RAMET_HOME`` on the new file system, which is gone when it ends.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType

from ramet.signals import signals_held

PREFIX = "ramet-loopfs-"
PLACE = Path("/var/tmp")
MKFS = {
    "xfs": ("mkfs.xfs", "-q", "-m", "reflink=1"),
    "btrfs": ("mkfs.btrfs", "-q"),
    "ext4": ("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1"),
}
DEFAULT_SIZE_MIB = 16 * 1024
"""Sparse: it takes what is written to it."""
NOT_RUN_STATUS, NOT_FOUND_STATUS = 126, 127
"""As sh(1) has them."""


def why_not() -> str | None:
    """None if file systems can be mounted here, else the reason."""
    if os.geteuid() != 0:
        return "mounting a loop device needs root"
    if not Path("/dev/loop-control").exists():
        return "there is no /dev/loop-control"
    missing = [argv[0] for argv in MKFS.values() if shutil.which(argv[0], path=_search_path()) is None]
    return f"{', '.join(missing)} not found" if missing else None


@contextmanager
def loopfs(kind: str, *, size_mib: int = DEFAULT_SIZE_MIB, sparse: bool = True) -> Iterator[Path]:
    """Mount a new file system of ``kind`` and yield where; unmounted and deleted after the block, whatever happens in it.

    Where it is not ``sparse``, its blocks have a place on the disk below from the start: nobody pays for being the first to write
    to one.
    """
    sweep()
    base = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=PLACE))
    image, mount = base / "image", base / "mnt"
    try:
        mount.mkdir()
        with image.open("wb") as stream:
            stream.truncate(size_mib * 1024 * 1024)
            if not sparse:
                os.posix_fallocate(stream.fileno(), 0, size_mib * 1024 * 1024)
        _run([*MKFS[kind], str(image)])
        _run(["mount", "-o", "loop", str(image), str(mount)])
        yield mount
    finally:
        _remove(base)


def sweep() -> None:
    """Remove what a killed process left: the name says whose it is."""
    for base in PLACE.glob(f"{PREFIX}*"):
        owner = base.name.removeprefix(PREFIX).partition("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            ours = base.with_name(f"{PREFIX}{os.getpid()}-{base.name.rpartition('-')[2]}")
            try:
                base.rename(ours)
            except FileNotFoundError:  # another process is at it
                continue
            _remove(ours)


def _remove(base: Path) -> None:
    mount = base / "mnt"
    if _is_mount(mount):
        try:
            _run(["umount", str(mount)])
        except subprocess.CalledProcessError:
            print(f"loopfs: {mount} is still in use; unmounting it lazily", file=sys.stderr)
            _run(["umount", "--lazy", str(mount)])
    shutil.rmtree(base)


def _is_mount(mount: Path) -> bool:
    try:
        return mount.is_mount()
    except OSError:  # one that was shut down, as in a power cut: it is there, and says EIO
        return True


def _run(argv: Sequence[str]) -> None:
    environment = {**os.environ, "PATH": _search_path()}
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, env=environment)


def _search_path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def main(arguments: Sequence[str]) -> int:
    """Run a command with ``RAMET_HOME`` on a fresh file system.

    Returns what a shell would: its exit status, 128 + N if a signal ended it or us, 127 or 126 if it cannot be run.
    """
    if len(arguments) < 3 or arguments[0] not in MKFS or arguments[1] != "--":
        print(f"usage: python -m tools.loopfs {'|'.join(MKFS)} -- COMMAND...", file=sys.stderr)
        return 2
    reason = why_not()
    if reason is not None:
        print(f"loopfs: {reason}", file=sys.stderr)
        return 2
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup(1) and the shell's & have it
                signal.signal(number, _end)
        with loopfs(arguments[0]) as mount:
            return _command(arguments[2:], mount / "home")
    except _EndedError as err:
        print(f"loopfs: ended by {err.number.name}", file=sys.stderr)
        return 128 + err.number
    except subprocess.CalledProcessError as err:
        print(f"loopfs: {err}", file=sys.stderr)
        return 2


def _command(argv: Sequence[str], home: Path) -> int:
    with ExitStack() as held:
        held.enter_context(signals_held())
        try:
            child = subprocess.Popen(argv, env={**os.environ, "RAMET_HOME": str(home)})
        except OSError as err:
            print(f"loopfs: {argv[0]}: {err.strerror}", file=sys.stderr)
            return NOT_FOUND_STATUS if err.errno == errno.ENOENT else NOT_RUN_STATUS
        try:
            held.close()  # a signal that came meanwhile raises here, where it is known whom to end
            status = child.wait()
        finally:
            with suppress(ProcessLookupError):
                child.terminate()
            child.wait()
    return 128 - status if status < 0 else status


class _EndedError(KeyboardInterrupt):
    """A signal asks us to end."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__()
        self.number = number


def _end(number: int, _frame: FrameType | None) -> None:
    raise _EndedError(signal.Signals(number))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
