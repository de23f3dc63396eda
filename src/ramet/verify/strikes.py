"""What sabotages do: each breaks isolation from outside in one known way, on the real files and processes of a real run."""

from __future__ import annotations

import mmap
import os
import shlex
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from unittest.mock import patch

from ramet.errors import ConfigError
from ramet.linux import landlock, memfd, procfs, seccomp
from ramet.model import PAGE_BYTES, Hypervisor, MemoryPolicy
from ramet.verify import evidence, isolation
from ramet.verify.world import Identity, World

CONFINEMENT, USERS = "RAMET_CONFINEMENT", "RAMET_VMM_USERS"
VMM_PROGRAMS = {
    Hypervisor.QEMU: ("RAMET_QEMU", "qemu-system-x86_64"),
    Hypervisor.FIRECRACKER: ("RAMET_FIRECRACKER", "firecracker"),
}
STRANGE_TOKEN = b"strange!" * 8
RANDOM_VALUES = 240
"""A page of random bytes has more different ones than this; code and tables have fewer."""


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a published file for writing, as only a saboteur would; its mode is put back."""
    mode = path.stat().st_mode & 0o7777
    path.chmod(0o600)
    try:
        with path.open("r+b") as stream:
            yield stream
    finally:
        path.chmod(mode)


def _file(world: World, role: str, name: str) -> Path:
    return world.snapshot_dir(role) / name


def _source_file(world: World, name: str) -> Path:
    return world.directories["source"] / name


def _replace(path: Path, make: Callable[[Path], object]) -> None:
    """Put another file in the place of ``path``, with its mode."""
    mode = path.stat().st_mode & 0o7777
    new = path.with_name(f".{path.name}.sabotage")
    make(new)
    new.chmod(mode)
    new.rename(path)


def _overwrite(path: Path, old: bytes, new: bytes) -> None:
    """Replace every occurrence of ``old`` in a file, in place."""
    assert len(old) == len(new)
    with _opened(path) as stream, mmap.mmap(stream.fileno(), 0) as view:
        at = view.find(old)
        if at < 0:
            raise ConfigError(f"The sabotage cannot strike: {path} does not hold what it wants to change.")
        while at >= 0:
            view[at : at + len(new)] = new
            at = view.find(old, at + len(new))


def _flip_byte(path: Path) -> None:
    with _opened(path) as stream:
        stream.seek(path.stat().st_size // 2)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes((byte[0] ^ 0xFF,)))


def _write_differing_pages(onto: Path, source: Path) -> None:
    """What a diff written in place does: the pages in which ``source`` differs are written into ``onto``."""
    with _opened(onto) as target, source.open("rb") as reader:
        position = 0
        while chunk := reader.read(256 * PAGE_BYTES):
            target.seek(position)
            have = target.read(len(chunk))
            for start in range(0, len(chunk), PAGE_BYTES):
                page = chunk[start : start + PAGE_BYTES]
                if page != have[start : start + PAGE_BYTES]:
                    target.seek(position + start)
                    target.write(page)
            position += len(chunk)


# -- files --------------------------------------------------------------------------------------------------------


def hard_link_memory(world: World) -> None:
    """The fork's memory file is the source's, under another name."""
    _replace(_file(world, "fork", "memory"), lambda new: new.hardlink_to(_source_file(world, "memory")))


def diff_in_place(world: World) -> None:
    """The fork's diff snapshot goes into the source's memory file."""
    _write_differing_pages(_source_file(world, "memory"), _file(world, "fork", "memory"))


def full_copy(world: World) -> None:
    """The fork's memory file shares no block with its source's."""
    path = _file(world, "fork", "memory")

    def copy(new: Path) -> None:
        """Sparse, as a copy would be at its cheapest: holes stay holes, data is written."""
        with path.open("rb") as reader, new.open("wb") as writer:
            while chunk := reader.read(PAGE_BYTES):
                if chunk.count(0) == len(chunk):
                    writer.seek(len(chunk), os.SEEK_CUR)
                else:
                    writer.write(chunk)
            writer.truncate(path.stat().st_size)
            os.fsync(writer.fileno())

    _replace(path, copy)


def other_disk(world: World) -> None:
    """The fork's disk is not the source's."""
    path = _file(world, "fork", "disk.raw")
    _replace(path, lambda new: shutil.copyfile(path, new))
    _overwrite(path, _token(world, "source").encode(), STRANGE_TOKEN)


def flip_vmstate(world: World) -> None:
    """One byte of the source's device state."""
    _flip_byte(_source_file(world, "vmstate"))


def break_fork_vmstate(world: World) -> None:
    """One byte of the fork's device state."""
    _flip_byte(_file(world, "fork", "vmstate"))


def loosen_modes(world: World) -> None:
    """The fork's memory file can be read by others."""
    _file(world, "fork", "memory").chmod(0o644)


def lose_fork_diff(world: World) -> None:
    """The page with the fork's sentinel shows the base again, as if the dirty scan had missed it."""
    _overwrite(_file(world, "fork", "memory"), _token(world, "fork").encode(), _token(world, "source").encode())


def lose_what_source_wrote(world: World) -> None:
    """The page with the source's last sentinel holds something else in the snapshot that it sleeps on."""
    _overwrite(_file(world, "source", "memory"), _token(world, "source").encode(), STRANGE_TOKEN)


def write_late(world: World) -> None:
    """The source's memory file, after the last look at it."""
    _overwrite(_source_file(world, "memory"), _token(world, "source").encode(), STRANGE_TOKEN)


def write_into_sleeper(world: World) -> None:
    """The source's second snapshot shows in the sleeping fork's memory file."""
    _overwrite(_file(world, "sleeper", "memory"), world.tokens["sleeper"].encode(), _token(world, "source").encode())


def write_late_into_sleeper(world: World) -> None:
    """The sleeping fork's memory file, after the last look at it; and its disk, since it may wake from a copy in RAM."""
    for name in ("memory", "disk.raw"):
        _overwrite(_file(world, "sleeper", name), world.tokens["sleeper"].encode(), STRANGE_TOKEN)


def write_under_runner(world: World) -> None:
    """The known trap: what a running fork maps is written in place, and shows through every page that it has not copied."""
    info = world.info("runner")
    assert info.pid is not None
    own = {(file.printed_dev, file.ino): file.path for file in evidence.identify(isolation.files_of(info))}
    mapped = [own[m.dev, m.ino] for m in procfs.mappings(info.pid) if (m.dev, m.ino) in own]
    copies = [evidence.descriptor_of(info.pid, one) for one in evidence.guest_memory_mappings(info.pid)]
    mapped = mapped or [path for path in copies if path is not None]
    if not mapped:
        raise ConfigError(f"The sabotage cannot strike: process {info.pid} maps no file of its own.")
    _overwrite(mapped[0], world.tokens["runner"].encode(), STRANGE_TOKEN)


def write_into_sibling(world: World) -> None:
    """Before it starts, or its guest's next look would be at what it had read already."""
    _overwrite(_file(world, "sibling-b", "memory"), _token(world, "source").encode(), STRANGE_TOKEN)


def cross_siblings(world: World) -> None:
    """What sibling a wrote is in sibling b's diff."""
    memory = _file(world, "sibling-b", "memory")
    _overwrite(memory, _token(world, "sibling-b").encode(), _token(world, "sibling-a").encode())


def lose_first_generation(world: World) -> None:
    """What the first fork wrote is not in what the second is made of."""
    if "depth-2" not in world.tokens:
        _overwrite(_file(world, "depth-1", "memory"), _token(world, "depth-1").encode(), STRANGE_TOKEN)


def damage_descendant(world: World) -> None:
    """A file further down the chain changes with the deletion."""
    _overwrite(_file(world, "depth-4", "memory"), _token(world, "depth-4").encode(), STRANGE_TOKEN)


def tear_pair(world: World) -> None:
    """The fork's disk is that of a capture half a second later."""
    world.guest("source", "sleep 0.5")
    later = Path(world.named_snapshot("source", "later").disk)
    _replace(_file(world, "live-a", "disk.raw"), lambda new: shutil.copyfile(later, new))


def take_disk_of_running_source(world: World) -> None:
    """The fork's disk is the source's live one, which nobody has frozen."""
    live = world.info("source").live_disk
    assert live is not None
    _replace(_file(world, "live-a", "disk.raw"), lambda new: shutil.copyfile(live, new))


def pause_source(world: World) -> None:
    """Nobody resumes the source after the capture."""
    world.host.pause(world.name("source"))


def stop_flight(world: World) -> None:
    """The first fork's VMM stands still, and no record says so."""
    pid = world.info("flight-a").pid
    if pid is not None and "stopped" not in world.notes:
        world.notes["stopped"] = str(pid)
        os.kill(pid, signal.SIGSTOP)


def write_into_golden(world: World) -> None:
    """The snapshot that is gone back to, once."""
    memory = world.directories["golden"] / "memory"
    if STRANGE_TOKEN not in memory.read_bytes():
        _overwrite(memory, world.tokens["golden"].encode(), STRANGE_TOKEN)


def resurrect_pages(world: World) -> None:
    """Where the source's memory is zero and its earlier snapshot, which the fork has, holds what it filled, the earlier shows."""
    before = _file(world, "sleeper", "memory")
    with _opened(_file(world, "source", "memory")) as target, before.open("rb") as reader:
        for at in range(0, before.stat().st_size, PAGE_BYTES):
            old = reader.read(PAGE_BYTES)
            if len(set(old)) < RANDOM_VALUES:
                continue
            target.seek(at)
            if target.read(PAGE_BYTES).count(0) == PAGE_BYTES:
                target.seek(at)
                target.write(old)


def keep_earlier(world: World) -> None:
    """A snapshot of the counting source, some counts before it goes to sleep."""
    world.notes["earlier"] = world.named_snapshot("source", "earlier").disk
    world.guest("source", "sleep 0.5")


def give_fork_earlier_disk(world: World) -> None:
    """The first of the forks has that disk."""
    _give_earlier_disk(world, "forked-first")


def give_source_earlier_disk(world: World) -> None:
    """The source has that disk, after its first sleep."""
    _give_earlier_disk(world, "source")


def _give_earlier_disk(world: World, role: str) -> None:
    earlier = world.notes.pop("earlier", None)
    if earlier is not None:
        _replace(_file(world, role, "disk.raw"), lambda new: shutil.copyfile(earlier, new))


def leave_something(world: World) -> None:
    """A directory of the deleted fork."""
    Path(world.notes["gone-fork"]).mkdir(mode=0o700)
    world.notes["left-behind"] = world.notes["gone-fork"]


def remember_fork_dir(world: World) -> None:
    """Where that was."""
    world.notes["gone-fork"] = str(Path(world.info("fork").run_dir).parent)


def clear_what_was_left(world: World) -> None:
    """The saboteur leaves nothing himself; nothing happens if he has not struck."""
    left = world.notes.pop("left-behind", None)
    if left is not None:
        Path(left).rmdir()


# -- guests -------------------------------------------------------------------------------------------------------


def fill_nothing(world: World) -> None:
    """The source's memory stays as empty as after its boot."""
    world.fill_bytes = 0


def reboot(world: World) -> None:
    """A fresh boot of the fork's disk, made up to look like a restore: the sentinels are put back into its RAM."""
    name = world.name("fork")
    world.host.stop(name, force=True)
    world.host.start(name)
    world.guest("fork", 'printf %s "$1" >/ram/sentinel', arguments=[_token(world, "source")])
    world.fill("fork", seed=1, size_bytes=world.fill_bytes)


def take_identity(world: World) -> None:
    """The fork calls itself what the source does."""
    _be(world, "fork", world.identities["source"])


def borrow_name(world: World) -> None:
    """One fork of a pool calls itself what another does."""
    _be(world, "parked-b", world.identity("parked-a"))


def _be(world: World, role: str, who: Identity) -> None:
    script = 'hostname "$1"; echo "$2" >/etc/machine-id'
    world.guest(role, script, arguments=[who.hostname, who.machine_id])


def let_workload_escape(world: World) -> None:
    """The workload moves to the group that nobody freezes."""
    world.guest("source", "cat /ram/ticking >/sys/fs/cgroup/cgroup.procs")


def stop_clock(world: World) -> None:
    """The time of the snapshot, as if nobody had set the clock."""
    world.guest("fork", "date -s @$(($(date +%s) - 3600))")


def fix_randomness(world: World) -> None:
    """A generator that says the same to everybody."""
    world.guest(
        "source",
        "echo 00000000-0000-4000-8000-000000000000 >/run/uuid; mount --bind /run/uuid /proc/sys/kernel/random/uuid",
    )


def replay_randomness(world: World) -> None:
    """A generator that says something else each time, and the same in every fork."""
    fix_randomness(world)
    draw = "printf '%08d-0000-4000-8000-000000000000\\n' $i | dd of=/run/uuid conv=notrunc 2>/dev/null"
    script = f"i=0; while :; do i=$((i+1)); {draw}; done"
    world.host.exec(world.name("source"), ["sh", "-c", script], detach=True)


# -- the VMM ------------------------------------------------------------------------------------------------------


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
    disk = _source_file(world, "disk.raw")
    if os.geteuid() != 0:
        disk.chmod(0o600)  # root's VMM does not ask
    if (
        world.hypervisor is Hypervisor.FIRECRACKER
    ):  # which disk it opens is in the device state: a path in its directory
        _wrap_vmm(world, first=f"ln -sf {shlex.quote(str(disk))} work/disk.raw")
    else:
        _wrap_vmm(world, edit=f"s#file=[^,]*disk.raw#file={disk}#")


def open_for_a_moment(world: World) -> None:
    """What starts the fork's VMM opens the source's published disk for writing, and closes it before the VMM runs."""
    disk = _source_file(world, "disk.raw")
    if os.geteuid() != 0:
        disk.chmod(0o600)  # root does not ask
    _wrap_vmm(world, first=f"( exec 9<>{shlex.quote(str(disk))}; sleep 0.5 )")


def share_mapping(world: World) -> None:
    """The VMM maps its memory file shared."""
    if os.geteuid() != 0:
        _file(world, "fork", "memory").chmod(0o600)  # the VMM may map it itself; root's does not ask
    _wrap_vmm(world, edit=f"s#,readonly=on,rom=off##; s#share=off#share=on#; {_shared_file(world)}")


def open_shared_for_writing(world: World) -> None:
    """The VMM opens the published file itself, as one that may write it."""
    if os.geteuid() != 0:
        _file(world, "fork", "memory").chmod(0o600)
    _wrap_vmm(world, edit=f"s#,readonly=on,rom=off##; {_shared_file(world)}")


def _shared_file(world: World) -> str:
    """For ``sed``: what a fork shares is mapped from the file, and from no sealed copy, of which the kernel allows neither."""
    if world.memory_policy is MemoryPolicy.CLONE:
        return ""
    return f"s#mem-path=[^,]*#mem-path={_file(world, 'fork', 'memory')}#"


def leave_unsealed(world: World) -> None:
    """A copy in RAM that forks share can be written."""
    world.notes["unsealed"] = "yes"
    for name, made_up in (("seal", lambda _fd: None), ("why_not", lambda: None)):
        patch.object(memfd, name, made_up).start()


def seal_again(world: World) -> None:
    """From here on copies are sealed as before."""
    if world.notes.pop("unsealed", None) is not None:
        patch.stopall()


def _token(world: World, role: str) -> str:
    return world.tokens[role]
