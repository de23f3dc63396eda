"""What a VMM may reach: its image and its own snapshot to read, its instance's ``work/``, ``run/`` and ``logs/`` to write.

The kernel holds it to that (Landlock) from before its first instruction: one that was taken over cannot open another instance's
files. What a kernel does not enforce is said: ``weaknesses``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from ramet import config
from ramet.hypervisors.base import LaunchSpec
from ramet.linux import landlock

T = TypeVar("T")

SYSTEM: Final = tuple(
    Path(path)
    for path in (
        "/usr",
        "/lib",
        "/lib64",
        "/bin",
        "/etc/ld.so.cache",
        "/etc/ld.so.preload",
        "/etc/ld-musl-x86_64.path",
        "/sys/devices/system",
    )
)
STORES: Final = (Path("/nix/store"), Path("/gnu/store"))
"""Where some distributions keep every library."""
DEVICES: Final = tuple(Path(path) for path in ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"))
KVM: Final = Path("/dev/kvm")


def starter(spec: LaunchSpec, program: str, *, kvm: bool, memory_is_written: bool) -> Callable[[Callable[[], T]], T]:
    """A function that calls another in a thread that is confined as ``spec``'s VMM is to be; or as it is, where the kernel has no
    Landlock or ``RAMET_CONFINEMENT=off``.
    """
    if why_not() is not None:
        return _as_it_is
    return partial(landlock.call, rules(spec, program, kvm=kvm, memory_is_written=memory_is_written))


def hint() -> str:
    """What to do about a launch that failed because of this; nothing, where nothing is confined."""
    if why_not() is not None:
        return ""
    return " If it was refused a file that it needs: RAMET_VMM_READS=/that/directory, or RAMET_CONFINEMENT=off."


def rules(spec: LaunchSpec, program: str, *, kvm: bool, memory_is_written: bool) -> landlock.Rules:
    """``memory_is_written``: the VMM opens its memory file for writing, wherever that is.

    Directories are named and not files: a rule keeps its inode, and so the blocks of a file that was deleted, until the VMM's
    process is reaped, which some init processes never do (security/landlock/fs.c, get_inode_object).
    """
    loaded = {file.parent for file in (spec.boot.kernel, spec.boot.initrd)} if spec.boot is not None else set()
    if spec.vmstate is not None:
        loaded.add(spec.vmstate.parent)
    written = [spec.work_dir, spec.run_dir, spec.vmm_log.parent]
    if spec.work_dir not in spec.memory.parents:
        if memory_is_written:
            written.append(spec.memory)  # its own snapshot's, beside files that it may not write
        else:
            loaded.add(spec.memory.parent)
    return landlock.Rules(
        read=(*SYSTEM, *config.more_that_vmms_read(), *_installation(Path(program).resolve())),
        load=tuple(sorted(loaded)),
        use=(*DEVICES, *((KVM,) if kvm else ())),
        write=tuple(written),
    )


def weaknesses() -> list[str]:
    """What the kernel does not keep a VMM that was taken over from doing to what is not its own, in words; the worst first."""
    why = why_not()
    if why is not None:
        return [f"do anything that the user may do: {why}"]
    version = landlock.abi_version()
    found = ["control other instances through their sockets, which it can connect to"]
    if version < landlock.TRUNCATE_SINCE:
        found.append("truncate a file by its path")
    if version < landlock.SCOPE_SINCE:
        found.append("signal the processes of the same user")
    return [
        *found,
        "set the resource limits of the same user's processes, and so end them",
        "change modes, times and extended attributes of the same user's files",
    ]


def why_not() -> str | None:
    """None if VMMs are confined here, else why they are not.

    Raises:
        ConfigError: if ``$RAMET_CONFINEMENT`` is set to nonsense.
    """
    if not config.confinement_wanted():
        return "RAMET_CONFINEMENT is off"
    try:
        landlock.abi_version()
    except OSError as err:
        return f"the kernel has no Landlock ({err.strerror})"
    return None


def _installation(program: Path) -> Iterator[Path]:
    """Where a program that is not installed in /usr has its libraries and data."""
    yield program
    if program.parent.name == "bin":
        for name in ("lib", "lib64", "libexec", "share/qemu"):
            yield program.parent.parent / name
    for store in STORES:
        if store in program.parents:
            yield store
    for directory in os.environ.get("LD_LIBRARY_PATH", "").split(":"):
        if directory.startswith("/"):
            yield Path(directory)


def _as_it_is(action: Callable[[], T]) -> T:
    return action()
