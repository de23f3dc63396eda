"""Breaking isolation on purpose, from outside, each in one known way: a check that nothing here can fail does not ship.

Each strikes at one named point of one scenario, on the real files and processes of a real run, and names the checks that must
catch it.
"""

from __future__ import annotations

import mmap
import os
import shlex
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ramet.errors import ConfigError
from ramet.linux import procfs
from ramet.model import Hypervisor
from ramet.verify import evidence
from ramet.verify.world import Point, World

if TYPE_CHECKING:
    from collections.abc import Iterator

VMM_PROGRAMS = {
    Hypervisor.QEMU: ("RAMET_QEMU", "qemu-system-x86_64"),
    Hypervisor.FIRECRACKER: ("RAMET_FIRECRACKER", "firecracker"),
}
PAGE_BYTES = mmap.PAGESIZE
STRANGE_TOKEN = b"strange!" * 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Sabotage:
    """One way to break isolation."""

    name: str
    summary: str
    scenario: str
    caught_by: tuple[str, ...]
    """The checks that must FAIL; others may fail, or not be reached, besides."""
    strikes: dict[Point, Callable[[World], None]]
    needs_reflinks: bool = False
    hypervisors: tuple[Hypervisor, ...] = tuple(Hypervisor)
    """Those that can be made to do it."""

    def why_not(self, hypervisor: Hypervisor, *, no_reflinks: str | None) -> str | None:
        """Why it cannot be committed, None if it can."""
        if hypervisor not in self.hypervisors:
            return f"{hypervisor.value} has no option that does it"
        if self.needs_reflinks and no_reflinks is not None:
            return f"this file system has no reflinks ({no_reflinks})"
        return None


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
    return Path(world.scratch["dir-source"]) / name


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


def _hard_link_memory(world: World) -> None:
    _replace(_file(world, "fork", "memory"), lambda new: new.hardlink_to(_source_file(world, "memory")))


def _diff_in_place(world: World) -> None:
    _write_differing_pages(_source_file(world, "memory"), _file(world, "fork", "memory"))


def _full_copy(world: World) -> None:
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


def _other_disk(world: World) -> None:
    path = _file(world, "fork", "disk.raw")
    _replace(path, lambda new: shutil.copyfile(path, new))
    _overwrite(path, _token(world, "source").encode(), STRANGE_TOKEN)


def _flip_vmstate(world: World) -> None:
    _flip_byte(_source_file(world, "vmstate"))


def _break_fork_vmstate(world: World) -> None:
    _flip_byte(_file(world, "fork", "vmstate"))


def _loosen_modes(world: World) -> None:
    _file(world, "fork", "memory").chmod(0o644)


def _lose_fork_diff(world: World) -> None:
    """The page with the fork's sentinel shows the base again, as if the dirty scan had missed it."""
    _overwrite(_file(world, "fork", "memory"), _token(world, "fork").encode(), _token(world, "source").encode())


def _lose_source_diff(world: World) -> None:
    _overwrite(_file(world, "source", "memory"), _token(world, "source").encode(), STRANGE_TOKEN)


def _write_late(world: World) -> None:
    _overwrite(_source_file(world, "memory"), _token(world, "source").encode(), STRANGE_TOKEN)


def _write_into_sleeper(world: World) -> None:
    _overwrite(
        _file(world, "sleeper", "memory"), world.scratch["token-sleeper"].encode(), _token(world, "source").encode()
    )


def _write_late_into_sleeper(world: World) -> None:
    _overwrite(_file(world, "sleeper", "memory"), world.scratch["token-sleeper"].encode(), STRANGE_TOKEN)


def _write_under_runner(world: World) -> None:
    """The known trap: what a running fork maps is written in place, and shows through every page that it has not copied."""
    info = world.info("runner")
    assert info.pid is not None
    own = {(file.printed_dev, file.ino): file.path for file in evidence.identify(world.own_files("runner"))}
    mapped = [own[m.dev, m.ino] for m in procfs.mappings(info.pid) if (m.dev, m.ino) in own and "disk" not in m.path]
    _overwrite(mapped[0], world.scratch["token-runner"].encode(), STRANGE_TOKEN)


def _leave_something(world: World) -> None:
    Path(world.scratch["gone-fork"]).mkdir(mode=0o700)


def _remember_fork_dir(world: World) -> None:
    world.scratch["gone-fork"] = str(Path(world.info("fork").run_dir).parent)


def _clear_what_was_left(world: World) -> None:
    Path(world.scratch["gone-fork"]).rmdir()


# -- guests -------------------------------------------------------------------------------------------------------


def _fill_nothing(world: World) -> None:
    world.fill_bytes = 0


def _reboot(world: World) -> None:
    """A fresh boot of the fork's disk, made up to look like a restore: the sentinels are put back into its RAM."""
    name = world.name("fork")
    world.host.stop(name, force=True)
    world.host.start(name)
    world.guest("fork", 'printf %s "$1" >/ram/sentinel', arguments=[_token(world, "source")])
    world.fill("fork", seed=1, size_bytes=world.fill_bytes)


def _take_identity(world: World) -> None:
    world.guest(
        "fork",
        'hostname "$1"; echo "$2" >/etc/machine-id',
        arguments=[world.scratch["hostname-source"], world.scratch["machine-id-source"]],
    )


def _stop_clock(world: World) -> None:
    """The time of the snapshot, as if nobody had set the clock."""
    world.guest("fork", "date -s @$(($(date +%s) - 3600))")


def _fix_randomness(world: World) -> None:
    world.guest(
        "source",
        "echo 00000000-0000-4000-8000-000000000000 >/run/uuid; mount --bind /run/uuid /proc/sys/kernel/random/uuid",
    )


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
    world.scratch["vmm-before"] = os.environ.get(variable, "")
    world.scratch["vmm-script"] = str(script)
    os.environ[variable] = str(script)


def unwrap_vmm(world: World) -> None:
    """Take the script away again; nothing happens if there is none."""
    script = world.scratch.pop("vmm-script", None)
    if script is None:
        return
    variable, _ = VMM_PROGRAMS[world.hypervisor]
    Path(script).unlink(missing_ok=True)
    before = world.scratch.pop("vmm-before")
    if before:
        os.environ[variable] = before
    else:
        del os.environ[variable]


def _share_disk(world: World) -> None:
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


def _share_mapping(world: World) -> None:
    _wrap_vmm(world, edit="s#,readonly=on,rom=off##; s#share=off#share=on#")


def _token(world: World, role: str) -> str:
    return world.scratch[f"token-{role}"]


SABOTAGES: dict[str, Sabotage] = {
    sabotage.name: sabotage
    for sabotage in (
        Sabotage(
            name="hard-linked-memory",
            summary="the fork's memory file is a hard link to the source's",
            scenario="base",
            caught_by=("fork-own-inodes",),
            strikes={Point.FORKED: _hard_link_memory},
        ),
        Sabotage(
            name="in-place-diff",
            summary="the fork's diff snapshot is written into the source's memory file",
            scenario="base",
            caught_by=("source-memory-unchanged", "source-restores"),
            strikes={Point.FORK_SLEPT: _diff_in_place},
        ),
        Sabotage(
            name="shared-disk",
            summary="the fork's VMM opens the source's disk instead of its own",
            scenario="base",
            caught_by=("vmm-cannot-write-others", "source-disk-unchanged"),
            strikes={Point.FORK_RESTORING: _share_disk, Point.FORK_RESTORED: unwrap_vmm},
        ),
        Sabotage(
            name="reboot",
            summary="the fork is booted afresh and made up to look restored",
            scenario="base",
            caught_by=("fork-same-boot",),
            strikes={Point.FORK_RESTORED: _reboot},
        ),
        Sabotage(
            name="shared-mapping",
            summary="the fork's VMM maps its memory file MAP_SHARED",
            scenario="base",
            caught_by=("vmm-maps-privately",),
            strikes={Point.FORK_RESTORING: _share_mapping, Point.FORK_RESTORED: unwrap_vmm},
            hypervisors=(Hypervisor.QEMU,),
        ),
        Sabotage(
            name="other-disk",
            summary="the fork gets a disk that is not the source's",
            scenario="base",
            caught_by=("fork-sees-source",),
            strikes={Point.FORKED: _other_disk},
        ),
        Sabotage(
            name="broken-vmstate",
            summary="a byte of the fork's device state is flipped",
            scenario="base",
            caught_by=("fork-wakes",),
            strikes={Point.FORKED: _break_fork_vmstate},
        ),
        Sabotage(
            name="flipped-byte",
            summary="a host process flips a byte of the source's device state while the fork runs",
            scenario="base",
            caught_by=("source-state-unchanged",),
            strikes={Point.FORK_RESTORED: _flip_vmstate},
        ),
        Sabotage(
            name="lost-diff",
            summary="a dirty page is missing from the fork's diff snapshot",
            scenario="base",
            caught_by=("fork-diff-complete",),
            strikes={Point.FORK_SLEPT: _lose_fork_diff},
        ),
        Sabotage(
            name="full-copy",
            summary="the fork's memory file is a plain copy where a reflink is claimed",
            scenario="base",
            caught_by=("fork-disk-usage",),
            strikes={Point.FORK_SLEPT: _full_copy},
            needs_reflinks=True,
        ),
        Sabotage(
            name="nothing-dirtied",
            summary="the source's memory is left almost empty, so that a copy would cost nothing",
            scenario="base",
            caught_by=("source-dirtied",),
            strikes={Point.FILLING: _fill_nothing},
        ),
        Sabotage(
            name="loose-modes",
            summary="a published file is readable by everybody",
            scenario="base",
            caught_by=("snapshot-modes",),
            strikes={Point.FORKED: _loosen_modes},
        ),
        Sabotage(
            name="same-identity",
            summary="the fork keeps the source's host name and machine-id",
            scenario="base",
            caught_by=("own-identity",),
            strikes={Point.FORK_RESTORED: _take_identity},
        ),
        Sabotage(
            name="stale-clock",
            summary="the fork's wall clock still shows the time of the snapshot",
            scenario="base",
            caught_by=("wall-clock",),
            strikes={Point.FORK_RESTORED: _stop_clock},
        ),
        Sabotage(
            name="same-randomness",
            summary="the kernel's random UUID is the same in every fork",
            scenario="base",
            caught_by=("own-randomness",),
            strikes={Point.BOOTED: _fix_randomness},
        ),
        Sabotage(
            name="leaky-delete",
            summary="a deleted fork leaves a directory behind",
            scenario="base",
            caught_by=("nothing-left",),
            strikes={
                Point.FORK_SLEPT: _remember_fork_dir,
                Point.FORK_DELETED: _leave_something,
                Point.SOURCE_RESTORING: _clear_what_was_left,
            },
        ),
        Sabotage(
            name="late-write",
            summary="the source's memory file is written after the last look, before the source wakes",
            scenario="base",
            caught_by=("source-restores",),
            strikes={Point.SOURCE_RESTORING: _write_late},
        ),
        Sabotage(
            name="reverse-in-place-diff",
            summary="the source's second snapshot is written into the sleeping fork's memory file",
            scenario="reverse",
            caught_by=("sleeping-fork-unchanged",),
            strikes={Point.SOURCE_SLEPT: _write_into_sleeper},
        ),
        Sabotage(
            name="written-under-a-running-fork",
            summary="the file that a running fork maps is written in place",
            scenario="reverse",
            caught_by=("running-fork-unnoticed",),
            strikes={Point.SOURCE_SLEPT: _write_under_runner},
        ),
        Sabotage(
            name="late-write-to-a-fork",
            summary="the sleeping fork's memory file is written after the last look, before it wakes",
            scenario="reverse",
            caught_by=("sleeping-fork-wakes",),
            strikes={Point.SLEEPER_RESTORING: _write_late_into_sleeper},
        ),
        Sabotage(
            name="lost-source-diff",
            summary="a dirty page is missing from the source's second snapshot",
            scenario="reverse",
            caught_by=("source-diff-complete",),
            strikes={Point.SOURCE_WAKING_AGAIN: _lose_source_diff},
        ),
    )
}


def strike_of(sabotage: Sabotage | None) -> Callable[[World, Point], None]:
    """What ``World.reach`` calls."""

    def strike(world: World, point: Point) -> None:
        act = sabotage.strikes.get(point) if sabotage is not None else None
        if act is not None:
            act(world)

    return strike
