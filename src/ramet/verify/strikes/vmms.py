"""What sabotages do to VMMs: their command lines, what confines them, the memory that they map, whether they run."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
from pathlib import Path
from unittest.mock import patch

from ramet.errors import ConfigError
from ramet.linux import ksm, landlock, memfd, seccomp
from ramet.model import Hypervisor, MemoryPolicy
from ramet.verify.world import World

CONFINEMENT, USERS = "RAMET_CONFINEMENT", "RAMET_VMM_USERS"
VMM_PROGRAMS = {
    Hypervisor.QEMU: ("RAMET_QEMU", "qemu-system-x86_64"),
    Hypervisor.FIRECRACKER: ("RAMET_FIRECRACKER", "firecracker"),
}


def _wrap_vmm(world: World, *, first: str = ":", edit: str = "") -> None:
    """Let a script stand in for the VMM that does ``first``, edits its command line with ``sed``, and becomes it."""
    variable, program = VMM_PROGRAMS[world.hypervisor]
    real = os.environ.get(variable) or shutil.which(program)
    if real is None:
        raise ConfigError(f"This sabotage needs {program} in PATH.")
    script = world.host.home / f"verify-{world.tag}-{program}"
    script.write_text(
        "#!/bin/sh\n"
        "# Made by a sabotage of `ramet verify`; it removes this file at its end.\n"
        f'[ "$1" = --version ] || {{ {first}; }}\n'
        "count=$#\n"
        'while [ "$count" -gt 0 ]; do\n'
        f'    argument=$(printf "%s." "$1" | sed {shlex.quote(edit)})\n'
        '    set -- "$@" "${argument%.}"\n'
        "    shift\n"
        "    count=$((count - 1))\n"
        "done\n"
        f'exec {shlex.quote(real)} "$@"\n'
    )
    script.chmod(0o700)
    world.notes["vmm-script"] = str(script)
    _set_environment(world, variable, str(script))
    set_free(world)  # confined it would be refused


def unwrap_vmm(world: World) -> None:
    """Take the script away again, if there is one, and confine VMMs as before."""
    script = world.notes.pop("vmm-script", None)
    if script is not None:
        variable, _ = VMM_PROGRAMS[world.hypervisor]
        Path(script).unlink(missing_ok=True)
        _put_environment_back(world, variable)
    confine_again(world)


def set_free(world: World) -> None:
    """VMMs are started without confinement."""
    if world.memory_policy is MemoryPolicy.CLONE:
        _set_environment(world, CONFINEMENT, "off")
        return
    # Ramet lets no VMM share that it does not confine: all means are there, and do nothing.
    share_user(world)
    world.notes["set-free"] = "yes"
    for module in (landlock, seccomp):
        patch.object(module, "restrict_this_thread", lambda *_rules, **_options: None).start()


def share_user(world: World) -> None:
    """VMMs are started as the user that we are."""
    _set_environment(world, USERS, "off")


def confine_again(world: World) -> None:
    """VMMs are confined as before."""
    if world.notes.pop("set-free", None) is not None:
        patch.stopall()
    _put_environment_back(world, CONFINEMENT)
    _put_environment_back(world, USERS)


def _set_environment(world: World, name: str, value: str) -> None:
    world.notes[f"{name}-before"] = os.environ.get(name, "")
    os.environ[name] = value


def _put_environment_back(world: World, name: str) -> None:
    before = world.notes.pop(f"{name}-before", None)
    if before:
        os.environ[name] = before
    elif before is not None:
        del os.environ[name]


def share_disk(world: World) -> None:
    """The fork's VMM opens the source's published disk."""
    disk = world.directories["source"] / "disk.raw"
    if os.geteuid() != 0:
        disk.chmod(0o600)  # root's VMM does not ask
    if world.hypervisor is Hypervisor.FIRECRACKER:
        # Which disk it opens is in the device state: a path in its directory.
        _wrap_vmm(world, first=f"ln -sf {shlex.quote(str(disk))} work/disk.raw")
    else:
        _wrap_vmm(world, edit=f"s#file=[^,]*disk.raw#file={disk}#")


def open_for_a_moment(world: World) -> None:
    """What starts the fork's VMM opens the source's published disk for writing, and closes it before the VMM runs."""
    disk = world.directories["source"] / "disk.raw"
    if os.geteuid() != 0:
        disk.chmod(0o600)  # root does not ask
    _wrap_vmm(world, first=f"( exec 9<>{shlex.quote(str(disk))}; sleep 0.5 )")


def share_mapping(world: World) -> None:
    """The VMM maps its memory file shared."""
    if os.geteuid() != 0:
        (world.snapshot_dir("fork") / "memory").chmod(0o600)  # the VMM may map it itself; root's does not ask
    _wrap_vmm(world, edit=f"s#,readonly=on,rom=off##; s#share=off#share=on#; {_shared_file(world)}")


def open_shared_for_writing(world: World) -> None:
    """The VMM opens the published file itself, as one that may write it."""
    if os.geteuid() != 0:
        (world.snapshot_dir("fork") / "memory").chmod(0o600)
    _wrap_vmm(world, edit=f"s#,readonly=on,rom=off##; {_shared_file(world)}")


def _shared_file(world: World) -> str:
    """For ``sed``: what a fork shares is mapped from the file, and from no sealed copy, of which the kernel allows neither."""
    if world.memory_policy is MemoryPolicy.CLONE:
        return ""
    return f"s#mem-path=[^,]*#mem-path={world.snapshot_dir('fork') / 'memory'}#"


def leave_unsealed(world: World) -> None:
    """A copy in RAM that forks share can be written."""
    world.notes["unsealed"] = "yes"
    for name, made_up in (("seal", lambda _fd: None), ("why_not", lambda: None)):
        patch.object(memfd, name, made_up).start()


def seal_again(world: World) -> None:
    """From here on copies are sealed as before."""
    if world.notes.pop("unsealed", None) is not None:
        patch.stopall()


def let_memory_be_merged(world: World) -> None:
    """VMMs inherit that all of their memory may be merged (KSM), as from a service with ``MemoryKSM=``, and nobody clears it."""
    world.notes["merging"] = "yes" if ksm.is_wanted() else "no"
    patch.object(ksm, "forbid", lambda: None).start()
    ksm.allow()


def keep_from_merging(world: World) -> None:
    """Our memory may be merged if it might before; that of VMMs which start from here on may not."""
    before = world.notes.pop("merging", None)
    if before is not None:
        patch.stopall()
    if before == "no":
        ksm.forbid()


def stop_flight(world: World) -> None:
    """The first fork's VMM stands still, and no record says so."""
    pid = world.info("flight-a").pid
    if pid is not None and "stopped" not in world.notes:
        world.notes["stopped"] = str(pid)
        os.kill(pid, signal.SIGSTOP)
